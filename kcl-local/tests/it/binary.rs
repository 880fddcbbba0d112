//! The program `kcl-local`: one line when ready, a clear error, an orderly end.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use kcl_local::LocalAws;

fn kcl_local(port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kcl-local"));
    command.args(["--port", &port.to_string()]).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A child that does not outlive the test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // Already gone in a test that passes.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_says_when_it_is_ready_and_stops_at_a_signal() {
    for signal in ["TERM", "INT"] {
        let mut child = Started(kcl_local(0).spawn().unwrap());
        let mut output = BufReader::new(child.0.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.strip_prefix("kcl-local ready on http://").expect(&line).trim_end();
        std::net::TcpStream::connect(address).unwrap();

        let killed = Command::new("kill").args(["-s", signal, &child.0.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert_eq!(child.0.wait().unwrap().code(), Some(0), "at SIG{signal}");
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "more than one line on standard output");
    }
}

#[tokio::test]
async fn a_port_in_use_is_an_error_with_the_ports_number() {
    let aws = LocalAws::start().await.unwrap();
    let port = aws.address().port();
    let output = tokio::task::spawn_blocking(move || kcl_local(port).output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(&format!("port {port} of 127.0.0.1 is in use")), "{error}");
}
