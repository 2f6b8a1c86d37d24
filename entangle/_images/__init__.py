"""Images that hold a Python and the packages that functions need, for docker, Batch, Fargate and
Lambda.

The pip of this machine downloads the packages, with its settings, for the Python of the base image.
What pip knows here (an index, a login, a certificate) never enters the image.
"""
