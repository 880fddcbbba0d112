//! AWS on a laptop: a model of Kinesis that can be trusted to judge a consumer, and Kinesis, DynamoDB, SQS and S3 served
//! together on one loopback port.
//!
//! | module | what |
//! |---|---|
//! | [`kinesis`] | the model: pure, deterministic, in process; time is handed in |
//! | `wire` (feature `wire`, on by default) | the port: all four services for any AWS SDK, with faults on request |
//!
//! A test that goes over the wire starts a server of its own; a machine has ports enough:
//!
//! ```
//! # #[cfg(feature = "wire")]
//! # async fn test() -> Result<(), kcl_local::wire::StartError> {
//! let aws = kcl_local::LocalAws::start().await?;
//! let config = aws.sdk_config(); // for clients of all four services
//! println!("{}", aws.endpoint_url());
//! # Ok(())
//! # }
//! ```

pub mod kinesis;
#[cfg(feature = "wire")]
pub mod wire;

#[cfg(feature = "wire")]
pub use wire::LocalAws;
