//! The signals by which a container, a supervisor or a person asks a process to end.

/// Completes at the first SIGTERM or SIGINT (Ctrl-C); on systems without signals, at Ctrl-C.
///
/// From the first call on, the process no longer ends by these signals by itself. Should the handlers not be installable, that is
/// logged and the future stays pending.
///
/// # Cancel safety
/// A signal that arrives while the future is dropped is not seen.
pub async fn shutdown_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => tracing::info!("SIGTERM"),
                    _ = interrupt.recv() => tracing::info!("SIGINT"),
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "signal handlers can't be installed");
                std::future::pending::<()>().await;
            }
        }
    }
    #[cfg(not(unix))]
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::error!(%error, "the Ctrl-C handler can't be installed");
        std::future::pending::<()>().await;
    }
}
