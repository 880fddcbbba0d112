//! Worlds that only the embedded endpoint can be.

use kcl_core::Entropy;
use kcl_local::LocalAws;
use kcl_local::wire::LocalAwsBuilder;

use crate::support::{World, eventually};

/// A world on an embedded endpoint with these settings, whatever endpoint the other tests use. It has no stream yet.
pub(super) async fn embedded(settings: LocalAwsBuilder) -> World {
    let local: LocalAws = settings.start().await.unwrap();
    let (config, id) = (local.sdk_config(), Entropy::from_os().uuid());
    World {
        kinesis: aws_sdk_kinesis::Client::new(&config),
        dynamodb: aws_sdk_dynamodb::Client::new(&config),
        stream: format!("kcl-test-{id}"),
        application: format!("kcl-test-app-{id}"),
        local: Some(local),
        config,
    }
}

/// Waits until the stream is deleted.
pub(super) async fn gone(world: &World) {
    eventually("the stream is gone", async || {
        let answer = world.kinesis.describe_stream_summary().stream_name(&world.stream).send().await;
        answer.is_err_and(|error| error.into_service_error().is_resource_not_found_exception()).then_some(())
    })
    .await;
}
