//! The servers over the wire, driven by the official SDKs and by hand-made requests.

#[cfg(unix)]
mod binary;
mod dynamodb;
mod faults;
mod kinesis;
mod protocols;
mod s3;
mod server;
mod sqs;
mod streaming;
mod subscription_faults;
mod subscriptions;
mod support;
