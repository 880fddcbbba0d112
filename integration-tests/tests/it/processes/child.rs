//! A child process: how it is started, told to stop, and waited for.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::log::Log;
use crate::support::{PATIENCE, World, eventually};

/// How many of a child's last log lines are shown when a test fails.
const LINES_SHOWN: usize = 40;

/// The program with the environment that it needs to reach the world, and no other where that is embedded. No flags yet.
pub(crate) fn program(world: &World) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consumer-under-test"));
    environment(&mut command, world.local.as_ref().map(kcl_local::LocalAws::endpoint_url).as_deref());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Leads a program to the embedded endpoint, or to the one that the tests were given.
pub(super) fn environment(command: &mut Command, embedded: Option<&str>) {
    let Some(url) = embedded else {
        if let Some(url) = std::env::var("KCL_TEST_ENDPOINT_URL").ok().filter(|url| url != "aws") {
            command.env("AWS_ENDPOINT_URL", url);
        }
        return;
    };
    command
        .env_clear()
        .env("AWS_ENDPOINT_URL", url)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_EC2_METADATA_DISABLED", "true");
}

/// The program as a worker of the world's application that prints, with these further flags.
pub(super) fn worker(world: &World, flags: &str) -> Command {
    let mut command = program(world);
    command.args(["--application", &world.application, "--stream", &world.stream, "--print"]).args(flags.split_whitespace());
    command
}

/// A running child; killed when dropped. If the test fails, its last log lines are shown.
pub(super) struct Consumer {
    pub(super) name: String,
    child: Child,
    logs: Arc<Mutex<Vec<String>>>,
    readers: JoinSet<()>,
}

impl Consumer {
    /// Starts a child. What it prints goes to the log, under this name.
    pub(super) fn start(name: &str, mut command: Command, log: &Log) -> Self {
        let mut consumer = Self::start_unread(name, command.stdout(Stdio::piped()));
        let mut lines = BufReader::new(consumer.child.stdout.take().unwrap());
        let (log, worker) = (log.clone(), name.to_owned());
        consumer.readers.spawn(async move {
            let mut line = Vec::new();
            // A line without its end is one that a kill broke off.
            while lines.read_until(b'\n', &mut line).await.unwrap() > 0 && line.ends_with(b"\n") {
                log.note(&worker, &line);
                line.clear();
            }
        });
        consumer
    }

    /// Starts a child whose standard output is the test's matter.
    pub(super) fn start_unread(name: &str, command: &mut Command) -> Self {
        let mut child = command.arg("--worker-name").arg(name).stderr(Stdio::piped()).spawn().unwrap();
        let (mut lines, logs) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::<Mutex<Vec<String>>>::default());
        let (mut readers, kept) = (JoinSet::new(), Arc::clone(&logs));
        readers.spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().unwrap().push(line);
            }
        });
        Self { name: name.to_owned(), child, logs, readers }
    }

    pub(super) fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("a child that was not waited for");
        kill_process(Pid::from_raw(id.try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// Waits for the child to end, and until all that it wrote is read.
    pub(super) async fn end(&mut self) -> ExitStatus {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("{} has not ended within {PATIENCE:?}", self.name)).unwrap();
        while let Some(read) = self.readers.join_next().await {
            read.unwrap();
        }
        status
    }

    /// SIGTERM, and an end that says that all is well.
    pub(super) async fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.end().await.code(), Some(0), "{}", self.name);
    }

    /// The memory that it occupies now, as Linux counts it.
    #[cfg(target_os = "linux")]
    pub(super) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().expect("a running child"))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// What it wrote to standard error.
    pub(super) fn logs(&self) -> String {
        self.logs.lock().unwrap().join("\n")
    }

    /// Waits until it has written this to standard error.
    pub(super) async fn says(&self, words: &str) {
        eventually(words, async || self.logs().contains(words).then_some(())).await;
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.logs.lock().unwrap();
            let shown = logs.len().saturating_sub(LINES_SHOWN);
            eprintln!("--- {}, last log lines:\n{}", self.name, logs[shown..].join("\n"));
        }
    }
}
