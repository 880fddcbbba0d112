//! Where it all happens: embedded local AWS, another endpoint or real AWS; and what the run makes there and deletes again.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_types::SdkConfig;
use aws_types::region::Region;
use kcl_core::{Entropy, aws_config};
use kcl_local::LocalAws;
use kcl_local::kinesis::KinesisConfig;
use tokio::time::Instant;

use super::options::Options;
use super::reshard;

/// The longest time for which something may be in the making before it can be deleted.
const IN_THE_MAKING: Duration = Duration::from_secs(60);

/// The place of a run, and the names of what is made there.
#[derive(Debug)]
pub struct Site {
    /// For clients of all three services.
    pub aws: SdkConfig,
    /// The stream's name.
    pub stream: String,
    /// The application's name, which is the lease table's too.
    pub application: String,
    queue: String,
    /// The server, if it is this program's own. Dropping it stops it.
    embedded: Option<LocalAws>,
}

impl Site {
    /// Finds or starts AWS. Nothing is made yet.
    ///
    /// # Errors
    /// Settings that are missing, by name; a local server that can't be started.
    pub async fn open(options: &Options) -> anyhow::Result<Self> {
        if !options.aws && options.endpoint_url.is_none() {
            // A shard's read limits hold as they do in the cloud, and a change of shards takes its moment.
            let kinesis = KinesisConfig { updating_ms: 500, enforce_read_limits: true, ..KinesisConfig::default() };
            let server = LocalAws::builder().kinesis(kinesis).seed(options.seed).start().await?;
            return Ok(Self::new(server.sdk_config(), "", Some(server)));
        }
        let aws = match &options.endpoint_url {
            Some(url) => at_endpoint(url).await,
            None => real_aws().await?,
        };
        // Fresh names, so that nothing of another run or of anybody else is ever met, and all of it may be deleted.
        let suffix = Entropy::from_os().uuid().simple().to_string();
        Ok(Self::new(aws, &format!("-{}", &suffix[..12]), None))
    }

    fn new(aws: SdkConfig, suffix: &str, embedded: Option<LocalAws>) -> Self {
        let name = |what| format!("kcl-quickstart{what}{suffix}");
        Self { aws, stream: name("-orders"), application: name("-app"), queue: name("-dead-letters"), embedded }
    }

    /// Whether it is this program's own server.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// The place in words.
    #[must_use]
    pub fn place(&self) -> String {
        let region = self.aws.region().map(ToString::to_string).unwrap_or_default();
        match (&self.embedded, self.aws.endpoint_url()) {
            (Some(server), _) => format!("local AWS embedded in this program, {}", server.endpoint_url()),
            (None, Some(url)) => format!("{url}, region {region}"),
            (None, None) => format!("AWS, region {region}"),
        }
    }

    /// What is made there, in words.
    #[must_use]
    pub fn inventory(&self) -> String {
        format!("stream {} and its consumers, lease table {}, queue {}", self.stream, self.application, self.queue)
    }

    /// How long a lease lasts: short where the table is near, so that nobody has to wait for long after the kill.
    #[must_use]
    pub fn lease_duration(&self) -> Duration {
        Duration::from_secs(if self.is_embedded() { 3 } else { 10 })
    }

    /// Makes the stream and the dead-letter queue, waits until they are ready, and returns the queue's URL.
    ///
    /// # Errors
    /// What could not be made, and why.
    pub async fn make(&self, shards: u32) -> anyhow::Result<String> {
        let kinesis = aws_sdk_kinesis::Client::new(&self.aws);
        let shards = i32::try_from(shards).context("too many shards")?;
        let made = kinesis.create_stream().stream_name(&self.stream).shard_count(shards).send().await;
        made.with_context(|| format!("stream {} can't be made", self.stream))?;
        let made = aws_sdk_sqs::Client::new(&self.aws).create_queue().queue_name(&self.queue).send().await;
        let made = made.with_context(|| format!("queue {} can't be made", self.queue))?;
        reshard::ready(&kinesis, &self.stream).await?;
        made.queue_url.with_context(|| format!("queue {} was made without a URL", self.queue))
    }

    /// Deletes what was made, so far as it was; says what could not be deleted. The embedded server forgets it all anyway.
    pub async fn clear(&self) -> Vec<String> {
        if self.is_embedded() {
            return Vec::new();
        }
        let kinesis = aws_sdk_kinesis::Client::new(&self.aws);
        let stream = deleted(async || {
            let call = kinesis.delete_stream().stream_name(&self.stream).enforce_consumer_deletion(true);
            call.send().await.map(drop)
        });
        let dynamodb = aws_sdk_dynamodb::Client::new(&self.aws);
        let table = deleted(async || dynamodb.delete_table().table_name(&self.application).send().await.map(drop));
        let stream = stream.await.map_err(|error| format!("stream {}: {error:#}", self.stream));
        let table = table.await.map_err(|error| format!("table {}: {error:#}", self.application));
        let queue = self.delete_queue().await.map_err(|error| format!("queue {}: {error:#}", self.queue));
        [stream, table, queue].into_iter().filter_map(Result::err).collect()
    }

    async fn delete_queue(&self) -> anyhow::Result<()> {
        let sqs = aws_sdk_sqs::Client::new(&self.aws);
        let url = match sqs.get_queue_url().queue_name(&self.queue).send().await {
            Ok(found) => found.queue_url.context("it has no URL")?,
            Err(error) if error.as_service_error().is_some_and(|refusal| refusal.is_queue_does_not_exist()) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        sqs.delete_queue().queue_url(url).send().await?;
        Ok(())
    }
}

/// Deletes something, which may be in the making still: a signal comes at any time.
async fn deleted<E>(delete: impl AsyncFn() -> Result<(), E>) -> anyhow::Result<()>
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let deadline = Instant::now() + IN_THE_MAKING;
    loop {
        match delete().await {
            Ok(()) => return Ok(()),
            Err(error) if error.code() == Some("ResourceNotFoundException") => return Ok(()),
            Err(error) if error.code() == Some("ResourceInUseException") && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn real_aws() -> anyhow::Result<SdkConfig> {
    let aws = aws_config::load_from_env().await;
    ensure!(
        aws.region().is_some(),
        "no AWS region is configured: set AWS_REGION, or `region` in the profile of the AWS configuration file"
    );
    let provider = aws.credentials_provider().context("no AWS credentials are configured")?;
    provider.provide_credentials().await.context("no AWS credentials were found in the standard environment and configuration")?;
    Ok(aws)
}

/// The standard configuration, with this endpoint; region and credentials are made up where none are configured, as local servers take any.
async fn at_endpoint(url: &str) -> SdkConfig {
    let aws = aws_config::from_env().endpoint_url(url).load().await;
    let mut config = aws.to_builder();
    if aws.region().is_none() {
        config.set_region(Some(Region::from_static("us-east-1")));
    }
    let configured = match aws.credentials_provider() {
        Some(provider) => provider.provide_credentials().await.is_ok(),
        None => false,
    };
    if !configured {
        config.set_credentials_provider(Some(SharedCredentialsProvider::new(Credentials::from_keys("quickstart", "quickstart", None))));
    }
    config.build()
}
