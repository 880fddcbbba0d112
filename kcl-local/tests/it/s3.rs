//! S3 through its SDK: what payloads that are too large for a queue need.

use aws_sdk_s3::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_s3::types::ServerSideEncryption;
use kcl_local::wire::{Fault, Rule, Service};

use crate::support::Aws;

#[tokio::test]
async fn an_object_is_put_read_and_deleted_whatever_its_bytes() {
    let aws = Aws::start().await;
    aws.s3.create_bucket().bucket("payloads").send().await.unwrap();
    aws.s3.head_bucket().bucket("payloads").send().await.unwrap();
    let megabytes: Vec<u8> = (0..3_000_000_u32).flat_map(|number| number.to_le_bytes()).take(10 * 1024 * 1024).collect();
    for (key, bytes) in
        [("a/b c+ü%2F", &b"\x00\xff"[..]), ("xml", b"<order><id>7</id></order>"), ("json", b"{}"), ("empty", b""), ("large", &megabytes)]
    {
        aws.s3.put_object().bucket("payloads").key(key).body(bytes.to_vec().into()).send().await.unwrap();
        let got = aws.s3.get_object().bucket("payloads").key(key).send().await.unwrap();
        assert_eq!(got.content_length(), i64::try_from(bytes.len()).ok(), "{key}");
        assert!(got.body.collect().await.unwrap().to_vec() == bytes, "{key}");
    }
    let listed = aws.s3.list_objects_v2().bucket("payloads").send().await.unwrap();
    assert_eq!(listed.contents().len(), 5);
    aws.s3.delete_object().bucket("payloads").key("xml").send().await.unwrap();
    let missing = aws.s3.get_object().bucket("payloads").key("xml").send().await.unwrap_err();
    assert!(missing.into_service_error().is_no_such_key());
    let faults = aws.local.faults();
    assert_eq!(faults.requests_of(Service::S3, "PutObject"), 5);
    assert_eq!((faults.requests_of(Service::S3, "GetObject"), faults.accepted_of(Service::S3, "GetObject")), (6, 5));
    assert_eq!(faults.accepted_of(Service::S3, "DeleteObject"), 1);
}

#[tokio::test]
async fn encryption_that_was_asked_for_is_told() {
    let aws = Aws::start().await;
    aws.s3.create_bucket().bucket("payloads").send().await.unwrap();
    let put = aws.s3.put_object().bucket("payloads").key("k").body(vec![1].into());
    put.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id("alias/key").send().await.unwrap();
    let got = aws.s3.get_object().bucket("payloads").key("k").send().await.unwrap();
    assert_eq!(got.server_side_encryption(), Some(&ServerSideEncryption::AwsKms));
    assert_eq!(got.ssekms_key_id(), Some("alias/key"));
}

#[tokio::test]
async fn a_missing_bucket_has_its_code() {
    let aws = Aws::start().await;
    let error = aws.s3.put_object().bucket("nowhere").key("k").body(vec![1].into()).send().await.unwrap_err();
    assert_eq!(error.code(), Some("NoSuchBucket"));
}

#[tokio::test]
async fn faults_strike_s3_too() {
    let aws = Aws::start().await;
    aws.s3.create_bucket().bucket("payloads").send().await.unwrap();
    let put = || aws.s3.put_object().bucket("payloads").key("k").body(vec![1].into()).send();
    for (fault, code) in [
        (Fault::Throttle, "SlowDown"),
        (Fault::ServerError, "InternalError"),
        (Fault::Error { status: 403, code: "AccessDenied" }, "AccessDenied"),
    ] {
        aws.local.faults().add(Rule::new(fault).service(Service::S3).operation("PutObject").times(1));
        assert_eq!(put().await.unwrap_err().code(), Some(code));
    }
    aws.local.faults().add(Rule::new(Fault::Drop).service(Service::S3).times(1));
    assert!(matches!(put().await.unwrap_err(), SdkError::DispatchFailure(_)));
    put().await.unwrap();
}
