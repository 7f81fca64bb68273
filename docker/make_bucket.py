"""Make the bucket of MLflow's artifacts, unless it is there: `python make_bucket.py NAME`.

Where the server is and its keys come from the environment, as for MLflow itself.
"""

import os
import sys

import boto3
from botocore.exceptions import ClientError


def make_bucket(name: str) -> None:
    storage = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    try:
        storage.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise
        storage.create_bucket(Bucket=name)


if __name__ == "__main__":
    make_bucket(sys.argv[1])
