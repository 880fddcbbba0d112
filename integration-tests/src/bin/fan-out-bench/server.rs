//! The server in a process of its own: this program once more, so that neither its memory nor its threads are the worker's.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use kcl_core::aws_config::{BehaviorVersion, Region, SdkConfig};
use kcl_local::LocalAws;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A running server. Dropping it stops it.
pub(crate) struct Server {
    pub(crate) aws: SdkConfig,
    _process: Child,
}

impl Server {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program's own file is not known")?;
        let mut process = Command::new(program).arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let output = process.stdout.take().context("the server has no output")?;
        let mut endpoint = String::new();
        BufReader::new(output).read_line(&mut endpoint).await?;
        ensure!(endpoint.starts_with("http://"), "the server did not start");
        let credentials = Credentials::from_keys("bench", "bench", None);
        let aws = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(endpoint.trim())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .build();
        Ok(Self { aws, _process: process })
    }
}

/// The server's side: says where it listens, and ends when its parent does.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let server = LocalAws::start().await?;
    println!("{}", server.endpoint_url());
    let mut nothing = Vec::new();
    tokio::io::stdin().read_to_end(&mut nothing).await?;
    Ok(())
}
