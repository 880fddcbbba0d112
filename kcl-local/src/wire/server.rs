//! The server: connections, and what becomes of one request from its arrival to its answer.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::answer::Answer;
use super::dynamodb::DynamoDb;
use super::faults::{Fate, Fault, Faults};
use super::sqs::Sqs;
use super::tasks::Tasks;
use super::{Service, cbor};
use crate::kinesis::{Kinesis, api};

/// Largest body read: a PutRecords of 10 MiB, base64 and the JSON around it, with room to spare.
const MAX_BODY: usize = 32 * 1024 * 1024;

/// Waited when no connection can be accepted, as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The services behind the port.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) kinesis: Kinesis,
    pub(super) dynamodb: DynamoDb,
    pub(super) sqs: Sqs,
    pub(super) faults: Faults,
    pub(super) tasks: Tasks,
    pub(super) requests: AtomicU64,
}

/// Serves connections until its task is stopped.
pub(super) async fn accept(server: Arc<Server>, listener: TcpListener) {
    let http = auto::Builder::new(server.tasks.clone());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Best effort: without it answers are only slower.
        let _ = stream.set_nodelay(true);
        let (http, server) = (http.clone(), Arc::clone(&server));
        server.tasks.clone().spawn(async move {
            let service = service_fn(move |request| Arc::clone(&server).serve(request));
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(error, "connection ended: its client left, or a fault cut it");
            }
        });
    }
}

/// The connection is to end without an answer; hyper does so when the service of a request fails.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut by an injected fault, or by the server's stop")]
struct Cut;

/// What becomes of a request.
enum Outcome {
    Answered(Answer),
    Cut,
    Withheld,
}

/// How the caller words requests and wants its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Cbor,
}

impl Format {
    fn of(service: Service, headers: &HeaderMap) -> Self {
        let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        // Only Kinesis has the second format.
        if service == Service::Kinesis && content_type.starts_with(cbor::CONTENT_TYPE.as_bytes()) { Self::Cbor } else { Self::Json }
    }
}

/// One request, read whole.
struct Call {
    service: Service,
    operation: String,
    format: Format,
    body: Bytes,
    id: String,
}

impl Call {
    fn response(&self, answer: Answer) -> Response<Full<Bytes>> {
        match self.format {
            Format::Json => respond(self.service.json_type(), &self.id, answer),
            Format::Cbor => {
                let body = cbor::from_json(&answer.body).into();
                respond(cbor::CONTENT_TYPE, &self.id, Answer { body, ..answer })
            }
        }
    }
}

impl Server {
    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Cut> {
        let (head, body) = request.into_parts();
        // Counted, so that a run's requests have the same ids each time.
        let id = format!("00000000-0000-4000-8000-{:012x}", self.requests.fetch_add(1, Ordering::Relaxed));
        let target = head.headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let Some((service, operation)) = Service::of_target(target) else {
            let answer = Answer::error(
                400,
                "UnknownOperationException",
                "kcl-local speaks the JSON protocols of Kinesis, DynamoDB and SQS, by the header x-amz-target",
            );
            return Ok(respond(Service::Kinesis.json_type(), &id, answer));
        };
        let mut call =
            Call { service, operation: operation.to_owned(), format: Format::of(service, &head.headers), body: Bytes::new(), id };
        match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => call.body = body.to_bytes(),
            Err(error) => {
                let answer = Answer::error(413, "RequestEntityTooLarge", &error.to_string());
                return Ok(call.response(answer));
            }
        }

        let call = Arc::new(call);
        match self.carry_out(Arc::clone(&call)).await {
            Outcome::Answered(answer) => Ok(call.response(answer)),
            Outcome::Cut => Err(Cut),
            // Until the caller gives up or the server stops: both drop this future.
            Outcome::Withheld => match pending::<Infallible>().await {},
        }
    }

    /// Decides the request's fate and fulfils it.
    async fn carry_out(self: &Arc<Self>, call: Arc<Call>) -> Outcome {
        let fate = self.faults.decide(call.service, &call.operation);
        if (call.service, call.operation.as_str()) == (Service::Sqs, "ReceiveMessage") {
            // Ends with its caller: one that waits for messages must not take those of the caller's successor.
            return self.outcome(&call, fate).await;
        }
        // A task of its own, because a caller that gives up ends its connection, and with it the future that serves
        // it. A real service applies what it has received, however late: a delayed write can still land.
        let (answered, outcome) = oneshot::channel();
        let server = Arc::clone(self);
        self.tasks.spawn(async move {
            let outcome = server.outcome(&call, fate).await;
            // Nobody listens any more: applied all the same.
            let _ = answered.send(outcome);
        });
        outcome.await.unwrap_or(Outcome::Cut)
    }

    async fn outcome(&self, call: &Call, fate: Fate) -> Outcome {
        if !fate.delay.is_zero() {
            tokio::time::sleep(fate.delay).await;
        }
        match fate.fault {
            None | Some(Fault::Latency { .. }) => Outcome::Answered(self.apply(call).await),
            Some(Fault::Throttle) => Outcome::Answered(call.service.throttled(&call.operation)),
            Some(Fault::ServerError) => Outcome::Answered(call.service.failed()),
            Some(Fault::Drop) => Outcome::Cut,
            Some(Fault::LoseAnswer) => {
                self.apply(call).await;
                Outcome::Cut
            }
            Some(Fault::WithholdAnswer) => {
                self.apply(call).await;
                Outcome::Withheld
            }
        }
    }

    async fn apply(&self, call: &Call) -> Answer {
        match call.service {
            Service::Kinesis => self.kinesis(call),
            Service::DynamoDb => self.dynamodb.call(&call.operation, call.body.clone()).await,
            Service::Sqs => self.sqs.call(&call.operation, &call.body, &call.id).await,
        }
    }

    fn kinesis(&self, call: &Call) -> Answer {
        let body = match call.format {
            Format::Json => call.body.clone(),
            Format::Cbor => match cbor::to_json(&call.body) {
                Ok(json) => json.into(),
                Err(error) => return Answer::error(400, "SerializationException", &error.to_string()),
            },
        };
        match api::call(&self.kinesis, &call.operation, &body) {
            Ok(json) => Answer::ok(json),
            Err(error) => Answer { status: error.http_status(), body: error.to_json().into(), query_error: None },
        }
    }
}

fn respond(content_type: &str, id: &str, answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::builder()
        .status(StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
        .header(CONTENT_TYPE, content_type)
        .header("x-amzn-requestid", id);
    if let Some(code) = answer.query_error {
        response = response.header("x-amzn-query-error", code);
    }
    response.body(Full::new(answer.body)).expect("the headers are made of names, numbers and codes")
}
