#!/usr/bin/env python3
"""Drives the program kcl-local with unmodified boto3: Kinesis, DynamoDB and SQS.

How to run it, from the workspace's root:

    cargo build -p kcl-local
    python3 -m venv /tmp/boto3 && /tmp/boto3/bin/pip install boto3
    /tmp/boto3/bin/python kcl-local/checks/boto3_check.py target/debug/kcl-local

Prints a line for each check; exits with 1 if one fails.
"""

import datetime
import subprocess
import sys
import threading
import time
import traceback

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Aws:
    def __init__(self, endpoint):
        def client(service):
            return boto3.client(
                service,
                endpoint_url=endpoint,
                region_name="us-east-1",
                aws_access_key_id="test",
                aws_secret_access_key="test",
                config=Config(retries={"total_max_attempts": 1}, max_pool_connections=40),
            )

        self.kinesis, self.dynamodb, self.sqs = client("kinesis"), client("dynamodb"), client("sqs")

    def stream(self, name, shards=1):
        self.kinesis.create_stream(StreamName=name, ShardCount=shards)
        self.kinesis.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 1})

    def consumer(self, stream):
        self.stream(stream)
        arn = self.kinesis.describe_stream_summary(StreamName=stream)["StreamDescriptionSummary"]["StreamARN"]
        registered = self.kinesis.register_stream_consumer(StreamARN=arn, ConsumerName="app")
        return registered["Consumer"]["ConsumerARN"]

    def subscribe(self, consumer, **position):
        answer = self.kinesis.subscribe_to_shard(
            ConsumerARN=consumer, ShardId="shardId-000000000000", StartingPosition=position
        )
        return (event["SubscribeToShardEvent"] for event in answer["EventStream"])

    def table(self, name):
        self.dynamodb.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "leaseKey", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "leaseKey", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        self.dynamodb.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1})

    def read_shard(self, stream, shard, **position):
        position = position or {"ShardIteratorType": "TRIM_HORIZON"}
        iterator = self.kinesis.get_shard_iterator(StreamName=stream, ShardId=shard, **position)["ShardIterator"]
        records, children = [], []
        while iterator:
            answer = self.kinesis.get_records(ShardIterator=iterator)
            records += answer["Records"]
            children += [child["ShardId"] for child in answer.get("ChildShards", [])]
            if not answer["Records"] and answer["MillisBehindLatest"] == 0:
                break
            iterator = answer.get("NextShardIterator")
        return records, children


def equal(actual, expected):
    assert actual == expected, f"{actual!r}, not {expected!r}"


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        equal(error.response["Error"]["Code"], code)
        return error
    raise AssertionError(f"not refused with {code}")


@check
def kinesis_streams_are_made_described_and_listed(aws):
    aws.stream("streams", 2)
    summary = aws.kinesis.describe_stream_summary(StreamName="streams")["StreamDescriptionSummary"]
    equal((summary["StreamStatus"], summary["OpenShardCount"]), ("ACTIVE", 2))
    age = datetime.datetime.now(datetime.timezone.utc) - summary["StreamCreationTimestamp"]
    assert abs(age.total_seconds()) < 60, age
    by_arn = aws.kinesis.list_shards(StreamARN=summary["StreamARN"])["Shards"]
    equal([shard["ShardId"] for shard in by_arn], ["shardId-000000000000", "shardId-000000000001"])
    assert "streams" in aws.kinesis.list_streams()["StreamNames"]
    aws.kinesis.delete_stream(StreamName="streams")
    aws.kinesis.get_waiter("stream_not_exists").wait(StreamName="streams", WaiterConfig={"Delay": 1})


@check
def kinesis_records_are_read_as_they_were_put(aws):
    aws.stream("records", 3)
    entries = [{"Data": bytes([n, 0, 255]), "PartitionKey": f"key-{n}"} for n in range(200)]
    put = aws.kinesis.put_records(StreamName="records", Records=entries)
    equal(put["FailedRecordCount"], 0)
    read = {}
    for shard in aws.kinesis.list_shards(StreamName="records")["Shards"]:
        records, _ = aws.read_shard("records", shard["ShardId"])
        numbers = [int(record["SequenceNumber"]) for record in records]
        equal(numbers, sorted(set(numbers)))
        read.update({record["SequenceNumber"]: (record["Data"], record["PartitionKey"]) for record in records})
    expected = zip(put["Records"], entries)
    equal(read, {p["SequenceNumber"]: (e["Data"], e["PartitionKey"]) for p, e in expected})


@check
def kinesis_iterators_start_where_they_are_told(aws):
    aws.stream("positions")
    first, second = (
        aws.kinesis.put_record(StreamName="positions", PartitionKey="k", Data=data)["SequenceNumber"]
        for data in (b"first", b"second")
    )
    shard = "shardId-000000000000"

    def read(**position):
        return [record["Data"] for record in aws.read_shard("positions", shard, **position)[0]]

    equal(read(ShardIteratorType="AT_SEQUENCE_NUMBER", StartingSequenceNumber=first), [b"first", b"second"])
    equal(read(ShardIteratorType="AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=first), [b"second"])
    equal(read(ShardIteratorType="AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=second), [])
    equal(read(ShardIteratorType="LATEST"), [])
    hour_ago = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
    equal(read(ShardIteratorType="AT_TIMESTAMP", Timestamp=hour_ago), [b"first", b"second"])


@check
def kinesis_split_and_merge_keep_the_lineage(aws):
    aws.stream("reshard")
    aws.kinesis.put_record(StreamName="reshard", PartitionKey="k", Data=b"before")
    aws.kinesis.split_shard(
        StreamName="reshard", ShardToSplit="shardId-000000000000", NewStartingHashKey=str(2**127)
    )
    shards = aws.kinesis.list_shards(StreamName="reshard")["Shards"]
    children = [shard["ShardId"] for shard in shards if shard.get("ParentShardId") == "shardId-000000000000"]
    equal(len(children), 2)
    assert "EndingSequenceNumber" in shards[0]["SequenceNumberRange"]
    records, ended_in = aws.read_shard("reshard", "shardId-000000000000")
    equal(([record["Data"] for record in records], ended_in), ([b"before"], children))
    aws.kinesis.merge_shards(StreamName="reshard", ShardToMerge=children[0], AdjacentShardToMerge=children[1])
    merged = aws.kinesis.list_shards(StreamName="reshard", ShardFilter={"Type": "AT_LATEST"})["Shards"]
    equal(len(merged), 1)
    equal({merged[0]["ParentShardId"], merged[0]["AdjacentParentShardId"]}, set(children))


@check
def kinesis_pages_of_shards_follow_each_other(aws):
    aws.stream("pages", 5)
    # Not by boto3's paginator: it repeats the stream's name beside the token, which the service refuses.
    page = aws.kinesis.list_shards(StreamName="pages", MaxResults=2)
    sizes = [len(page["Shards"])]
    while token := page.get("NextToken"):
        page = aws.kinesis.list_shards(NextToken=token, MaxResults=2)
        sizes.append(len(page["Shards"]))
    equal(sizes, [2, 2, 1])


@check
def kinesis_errors_have_their_classes(aws):
    refused("ResourceNotFoundException", aws.kinesis.describe_stream_summary, StreamName="nowhere")
    refused("InvalidArgumentException", aws.kinesis.get_records, ShardIterator="made up")
    try:
        aws.kinesis.list_shards(StreamName="nowhere")
    except aws.kinesis.exceptions.ResourceNotFoundException as error:
        assert "nowhere" in str(error), error


@check
def kinesis_a_tailing_reader_loses_nothing(aws):
    aws.stream("tail")
    writers, each = 8, 50

    def write(writer):
        for n in range(each):
            aws.kinesis.put_record(StreamName="tail", PartitionKey="k", Data=f"{writer}/{n}".encode())

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    iterator = aws.kinesis.get_shard_iterator(
        StreamName="tail", ShardId="shardId-000000000000", ShardIteratorType="LATEST"
    )["ShardIterator"]
    for thread in threads:
        thread.start()
    read, deadline = [], time.monotonic() + 60
    while len(read) < writers * each and time.monotonic() < deadline:
        answer = aws.kinesis.get_records(ShardIterator=iterator)
        read += [record["Data"].decode() for record in answer["Records"]]
        iterator = answer["NextShardIterator"]
    for thread in threads:
        thread.join()
    equal(sorted(read), sorted(f"{writer}/{n}" for writer in range(writers) for n in range(each)))


@check
def kinesis_consumers_are_registered_described_listed_and_deregistered(aws):
    aws.stream("consumed")
    stream = aws.kinesis.describe_stream_summary(StreamName="consumed")["StreamDescriptionSummary"]["StreamARN"]
    for name in ("one", "two"):
        registered = aws.kinesis.register_stream_consumer(StreamARN=stream, ConsumerName=name)["Consumer"]
        equal(registered["ConsumerName"], name)
    refused("ResourceInUseException", aws.kinesis.register_stream_consumer, StreamARN=stream, ConsumerName="one")
    arn = registered["ConsumerARN"]
    for by in ({"ConsumerARN": arn}, {"StreamARN": stream, "ConsumerName": "two"}):
        described = aws.kinesis.describe_stream_consumer(**by)["ConsumerDescription"]
        equal((described["ConsumerARN"], described["ConsumerStatus"], described["StreamARN"]), (arn, "ACTIVE", stream))
    age = datetime.datetime.now(datetime.timezone.utc) - described["ConsumerCreationTimestamp"]
    assert abs(age.total_seconds()) < 60, age
    listed = aws.kinesis.get_paginator("list_stream_consumers").paginate(
        StreamARN=stream, PaginationConfig={"PageSize": 1}
    )
    equal([consumer["ConsumerName"] for page in listed for consumer in page["Consumers"]], ["one", "two"])
    aws.kinesis.deregister_stream_consumer(ConsumerARN=arn)
    refused("ResourceNotFoundException", aws.kinesis.describe_stream_consumer, ConsumerARN=arn)


@check
def kinesis_a_subscription_brings_records_and_the_shards_end(aws):
    arn = aws.consumer("subscribed")
    aws.kinesis.put_record(StreamName="subscribed", PartitionKey="k", Data=b"backlog \x00\xff")
    events = aws.subscribe(arn, Type="TRIM_HORIZON")
    first = next(events)
    equal([record["Data"] for record in first["Records"]], [b"backlog \x00\xff"])
    equal(first["ContinuationSequenceNumber"], first["Records"][0]["SequenceNumber"])
    for n in range(20):
        put = time.monotonic()
        aws.kinesis.put_record(StreamName="subscribed", PartitionKey="k", Data=str(n).encode())
        event = next(events)
        while not event["Records"]:
            event = next(events)
        equal([record["Data"] for record in event["Records"]], [str(n).encode()])
        # Far below the five seconds after which an event comes in any case.
        assert time.monotonic() - put < 2, f"{time.monotonic() - put} s"
    try:
        aws.subscribe(arn, Type="LATEST")
    except aws.kinesis.exceptions.ResourceInUseException:
        pass
    else:
        raise AssertionError("two subscriptions at once")
    aws.kinesis.split_shard(
        StreamName="subscribed", ShardToSplit="shardId-000000000000", NewStartingHashKey=str(2**127)
    )
    rest = list(events)
    children = [child["ShardId"] for child in rest[-1]["ChildShards"]]
    equal(children, ["shardId-000000000001", "shardId-000000000002"])
    assert "ContinuationSequenceNumber" not in rest[-1]


@check
def kinesis_deregistration_ends_a_subscription(aws):
    arn = aws.consumer("deregistered")
    events = aws.subscribe(arn, Type="LATEST")
    next(events)
    aws.kinesis.deregister_stream_consumer(ConsumerARN=arn)
    try:
        list(events)
    except EventStreamError as error:
        equal(error.response["Error"]["Code"], "ResourceNotFoundException")
        return
    raise AssertionError("ended in order")


@check
def dynamodb_conditions_hold_and_say_what_they_met(aws):
    aws.table("conditions")
    aws.dynamodb.put_item(TableName="conditions", Item={"leaseKey": {"S": "a"}, "leaseCounter": {"N": "1"}})

    def renew(seen):
        return dict(
            TableName="conditions",
            Key={"leaseKey": {"S": "a"}},
            UpdateExpression="SET leaseCounter = :next",
            ConditionExpression="leaseCounter = :seen",
            ExpressionAttributeValues={":seen": {"N": str(seen)}, ":next": {"N": str(seen + 1)}},
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )

    equal(aws.dynamodb.update_item(**renew(1))["Attributes"]["leaseCounter"], {"N": "2"})
    error = refused("ConditionalCheckFailedException", aws.dynamodb.update_item, **renew(1))
    equal(error.response["Item"], {"leaseKey": {"S": "a"}, "leaseCounter": {"N": "2"}})


@check
def dynamodb_values_of_every_kind_come_back(aws):
    aws.table("values")
    item = {
        "leaseKey": {"S": "a"},
        "bytes": {"B": b"\x00\xff"},
        "set": {"SS": ["x", "y"]},
        "map": {"M": {"list": {"L": [{"N": "1"}, {"BOOL": True}, {"NULL": True}]}}},
    }
    aws.dynamodb.put_item(TableName="values", Item=item)
    got = aws.dynamodb.get_item(TableName="values", Key={"leaseKey": {"S": "a"}}, ConsistentRead=True)["Item"]
    got["set"]["SS"].sort()
    equal(got, item)
    aws.dynamodb.delete_item(TableName="values", Key={"leaseKey": {"S": "a"}})
    equal("Item" in aws.dynamodb.get_item(TableName="values", Key={"leaseKey": {"S": "a"}}), False)


@check
def dynamodb_an_index_is_added_and_queried(aws):
    aws.table("indexed")
    for key, owner in (("a", "one"), ("b", "other"), ("c", "one")):
        aws.dynamodb.put_item(TableName="indexed", Item={"leaseKey": {"S": key}, "leaseOwner": {"S": owner}})
    aws.dynamodb.update_table(
        TableName="indexed",
        AttributeDefinitions=[
            {"AttributeName": "leaseKey", "AttributeType": "S"},
            {"AttributeName": "leaseOwner", "AttributeType": "S"},
        ],
        GlobalSecondaryIndexUpdates=[
            {
                "Create": {
                    "IndexName": "owners",
                    "KeySchema": [{"AttributeName": "leaseOwner", "KeyType": "HASH"}],
                    "Projection": {"ProjectionType": "KEYS_ONLY"},
                }
            }
        ],
    )

    def active():
        indexes = aws.dynamodb.describe_table(TableName="indexed")["Table"]["GlobalSecondaryIndexes"]
        return indexes[0]["IndexStatus"] == "ACTIVE"

    deadline = time.monotonic() + 30
    while not active():
        assert time.monotonic() < deadline, "the index never became active"
        time.sleep(0.05)
    owned = aws.dynamodb.query(
        TableName="indexed",
        IndexName="owners",
        KeyConditionExpression="leaseOwner = :o",
        ExpressionAttributeValues={":o": {"S": "one"}},
    )["Items"]
    equal({item["leaseKey"]["S"] for item in owned}, {"a", "c"})


@check
def dynamodb_segments_and_pages_cover_the_table_once(aws):
    aws.table("scanned")
    for n in range(50):
        aws.dynamodb.put_item(TableName="scanned", Item={"leaseKey": {"S": f"{n:02}"}})
    scan = aws.dynamodb.get_paginator("scan")
    keys = [
        item["leaseKey"]["S"]
        for segment in range(3)
        for page in scan.paginate(
            TableName="scanned", Segment=segment, TotalSegments=3, PaginationConfig={"PageSize": 4}
        )
        for item in page["Items"]
    ]
    equal(sorted(keys), [f"{n:02}" for n in range(50)])


@check
def sqs_messages_are_sent_received_and_deleted(aws):
    url = aws.sqs.create_queue(QueueName="letters", Attributes={"MaximumMessageSize": "2048"})["QueueUrl"]
    equal(aws.sqs.get_queue_url(QueueName="letters")["QueueUrl"], url)
    attribute = {"reason": {"DataType": "String", "StringValue": "poison"}}
    aws.sqs.send_message(QueueUrl=url, MessageBody="a record", MessageAttributes=attribute)
    batch = aws.sqs.send_message_batch(
        QueueUrl=url, Entries=[{"Id": str(n), "MessageBody": f"record {n}"} for n in range(3)]
    )
    equal(len(batch["Successful"]), 3)
    received = {}
    while len(received) < 4:
        answer = aws.sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=5, MessageAttributeNames=["All"]
        )
        assert answer.get("Messages"), f"only {len(received)} messages"
        for message in answer["Messages"]:
            received[message["Body"]] = message.get("MessageAttributes")
            aws.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    equal(received["a record"], attribute)
    left = aws.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    equal((left["ApproximateNumberOfMessages"], left["MaximumMessageSize"]), ("0", "2048"))
    refused("InvalidParameterValue", aws.sqs.send_message, QueueUrl=url, MessageBody="x" * 2049)


@check
def sqs_a_missing_queue_has_its_class(aws):
    try:
        aws.sqs.get_queue_url(QueueName="nowhere")
    except aws.sqs.exceptions.QueueDoesNotExist:
        return
    raise AssertionError("not refused")


def run(endpoint):
    aws, failed = Aws(endpoint), 0
    for function in CHECKS:
        name = function.__name__.replace("_", " ")
        try:
            function(aws)
            print(f"ok      {name}")
        except Exception:  # whatever it is, the check has failed
            failed += 1
            print(f"FAILED  {name}")
            traceback.print_exc(file=sys.stdout)
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks passed with boto3 {boto3.__version__}")
    return 1 if failed else 0


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "target/debug/kcl-local"
    server = subprocess.Popen([program, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        ready = server.stdout.readline().strip()
        prefix = "kcl-local ready on "
        if not ready.startswith(prefix):
            print(f"{program} did not become ready: {ready!r}")
            return 1
        return run(ready.removeprefix(prefix))
    finally:
        server.terminate()
        server.wait(timeout=10)


if __name__ == "__main__":
    sys.exit(main())
