"""Amazon Web Services: whose account, a mailbox in S3, and a service for each way to run there.

boto3 is loaded by the first call, and sees all credentials. What runs there has addresses that are
signed for single objects of the bucket, and no credentials of the caller.
"""
