//! The signals by which a container, a supervisor or a person asks a process to end.

/// Completes once the process was asked to end: by SIGTERM, SIGINT (Ctrl-C) or SIGHUP; on systems
/// without signals, by Ctrl-C.
///
/// From the first call on, the first of these signals no longer ends the process by itself; that is
/// up to whoever awaits this. **A second SIGTERM or SIGINT ends the process at once**, with exit status
/// 143 or 130, whatever the process is doing: a person who asks twice does not want to wait. A SIGHUP
/// that is ignored when this is first called (`nohup`) stays so, where that can be found out (Linux).
///
/// Once a signal has come, every call completes at once. Should the handlers not be installable, that
/// is logged and the future stays pending.
///
/// # Cancel safety
/// Safe: a signal that comes while the future is dropped is seen by the next call.
pub async fn shutdown_signal() {
    if imp::received().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The signal handlers can't be installed, or their thread is gone.
#[derive(Debug)]
struct Unheard;

#[cfg(unix)]
mod imp {
    use std::sync::OnceLock;

    use tokio::runtime::Builder;
    use tokio::signal::unix::{Signal, SignalKind, signal};
    use tokio::sync::watch;

    use super::Unheard;

    /// Whether a signal has come. `None`: signals can't be heard.
    static RECEIVED: OnceLock<Option<watch::Receiver<bool>>> = OnceLock::new();

    pub(super) async fn received() -> Result<(), Unheard> {
        let mut received = RECEIVED.get_or_init(listen).clone().ok_or(Unheard)?;
        received.wait_for(|received| *received).await.map(drop).map_err(|_| Unheard)
    }

    /// Listens on a thread with a runtime of its own: a second signal must end the process even if
    /// all threads of the program's own runtime are blocked.
    fn listen() -> Option<watch::Receiver<bool>> {
        let (told, received) = watch::channel(false);
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let runtime = match Builder::new_current_thread().enable_io().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error))),
            };
            runtime.block_on(async {
                let handlers = Handlers::install();
                match handlers {
                    Ok(handlers) => {
                        // Whoever asked waits for this.
                        let _ = ready.send(Ok(()));
                        handlers.run(&told).await;
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            });
        });
        let installed = thread.and_then(|_| is_ready.recv().unwrap_or(Ok(())));
        match installed {
            Ok(()) => Some(received),
            Err(error) => {
                tracing::error!(%error, "signal handlers can't be installed");
                None
            }
        }
    }

    struct Handlers {
        terminate: Signal,
        interrupt: Signal,
        hangup: Option<Signal>,
    }

    impl Handlers {
        fn install() -> std::io::Result<Self> {
            // Before a handler takes the place of it.
            let hangup = if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
            Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())?, hangup })
        }

        async fn run(mut self, told: &watch::Sender<bool>) {
            loop {
                let (name, status) = tokio::select! {
                    biased;
                    _ = self.terminate.recv() => ("SIGTERM", Some(128 + 15)),
                    _ = self.interrupt.recv() => ("SIGINT", Some(128 + 2)),
                    () = next(&mut self.hangup) => ("SIGHUP", None),
                };
                if let (true, Some(status)) = (*told.borrow(), status) {
                    tracing::warn!(signal = name, "asked to end again: the process ends at once");
                    std::process::exit(status);
                }
                tracing::info!(signal = name, "asked to end");
                told.send_replace(true);
            }
        }
    }

    async fn next(signal: &mut Option<Signal>) {
        match signal {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }

    /// Returns whether the process was started to survive the end of its terminal.
    fn is_hangup_ignored() -> bool {
        std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
    }

    /// Reads the mask of ignored signals (proc(5)): its lowest bit is signal 1, SIGHUP.
    fn ignores_hangup(status: &str) -> bool {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u128::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_mask_tells_what_nohup_did() {
            for (status, ignored) in [
                ("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n", true),
                ("Name:\tx\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000000001\n", false),
                ("Name:\tx\n", false),
                ("SigIgn:\tx\n", false),
            ] {
                assert_eq!(ignores_hangup(status), ignored, "{status:?}");
            }
        }
    }
}

#[cfg(not(unix))]
mod imp {
    use super::Unheard;

    pub(super) async fn received() -> Result<(), Unheard> {
        tokio::signal::ctrl_c().await.map_err(|error| {
            tracing::error!(%error, "the Ctrl-C handler can't be installed");
            Unheard
        })
    }
}
