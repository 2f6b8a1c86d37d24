"""Images that hold a Python and the packages that functions need, for docker, Batch, Fargate and
Lambda.

Packages are had here, by the pip and the settings of whoever builds, for the Python of the base
image; what pip knows of this machine (an index, a login, a certificate) never enters the image.
"""
