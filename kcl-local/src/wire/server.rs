//! The server: connections, and what becomes of one request from its arrival to its answer.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format as DateFormat;
use bytes::Bytes;
use http::HeaderValue;
use http::header::{CONTENT_TYPE, DATE};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::answer::Answer;
use super::body::{self, Body, Cut};
use super::dynamodb::DynamoDb;
use super::faults::{Fate, Fault, Faults, STREAMING};
use super::format::Format;
use super::s3::S3;
use super::sqs::Sqs;
use super::subscription::{Subscribers, Subscription};
use super::tasks::Tasks;
use super::{Service, batches, cbor, event_stream};
use crate::kinesis::{ApiError, Kinesis, api};

/// Largest body read: a PutRecords of 10 MiB, base64 and the JSON around it, with room to spare.
const MAX_BODY: usize = 32 * 1024 * 1024;

/// Waited when no connection can be accepted, as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The services behind the port.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) kinesis: Kinesis,
    pub(super) subscribers: Arc<Subscribers>,
    pub(super) dynamodb: DynamoDb,
    pub(super) sqs: Sqs,
    pub(super) s3: S3,
    pub(super) faults: Faults,
    pub(super) tasks: Tasks,
    pub(super) requests: AtomicU64,
    /// Of one HTTP/2 connection at a time.
    pub(super) max_concurrent_streams: u32,
}

/// Serves connections until its task is stopped.
pub(super) async fn accept(server: Arc<Server>, listener: TcpListener) {
    let mut http = auto::Builder::new(server.tasks.clone());
    http.http2().max_concurrent_streams(server.max_concurrent_streams);
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

/// What a service replied.
enum Reply {
    Whole(Answer),
    Events(Subscription),
}

impl Reply {
    fn refused(error: &ApiError) -> Self {
        Self::Whole(Answer { status: error.http_status(), ..Answer::ok(error.to_json()) })
    }
}

/// What becomes of a request.
enum Outcome {
    Answered(Reply),
    Cut,
    /// The reply is kept as long as its caller waits: a subscription would end with it.
    Withheld(Reply),
}

/// One request, read whole.
struct Call {
    service: Service,
    operation: String,
    format: Format,
    head: Parts,
    body: Bytes,
    id: String,
}

impl Call {
    fn response(&self, reply: Reply) -> Response<Body> {
        match reply {
            Reply::Whole(answer) => {
                let content_type = match self.format {
                    Format::Json => self.service.content_type(),
                    Format::Cbor => cbor::CONTENT_TYPE,
                };
                respond(content_type, &self.id, Answer { body: self.format.write(answer.body), ..answer })
            }
            Reply::Events(subscription) => {
                let mut response = respond(event_stream::CONTENT_TYPE, &self.id, Answer::ok(Bytes::new()));
                *response.body_mut() = subscription.into_body();
                response
            }
        }
    }
}

impl Server {
    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
        let (head, body) = request.into_parts();
        // Counted, so that a run's requests have the same ids each time.
        let id = format!("00000000-0000-4000-8000-{:012x}", self.requests.fetch_add(1, Ordering::Relaxed));
        let target = head.headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let named = Service::of_target(target).map(|(service, operation)| (service, operation.to_owned()));
        let Some((service, operation)) = named.or_else(|| Some((Service::S3, self.s3.operation(&head)?))) else {
            let answer = Answer::error(
                400,
                "UnknownOperationException",
                "kcl-local speaks the JSON protocols of Kinesis, DynamoDB and SQS, by the header x-amz-target, and S3, by requests signed for it",
            );
            return Ok(respond(Service::Kinesis.content_type(), &id, answer));
        };
        let mut call = Call { service, operation, format: Format::of(service, &head.headers), head, body: Bytes::new(), id };
        match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => call.body = body.to_bytes(),
            Err(error) => {
                let answer = Answer::error(413, "RequestEntityTooLarge", &error.to_string());
                return Ok(call.response(Reply::Whole(answer)));
            }
        }

        let call = Arc::new(call);
        match self.carry_out(Arc::clone(&call)).await {
            Outcome::Answered(reply) => {
                let mut response = call.response(reply);
                if let Some(date) = self.date(call.service) {
                    response.headers_mut().insert(DATE, date);
                }
                Ok(response)
            }
            Outcome::Cut => Err(Cut),
            // Until the caller gives up or the server stops: both drop this future.
            Outcome::Withheld(_reply) => match pending::<Infallible>().await {},
        }
    }

    /// What time it is for a service whose time is handed in; the others' is the machine's, which the connection tells by itself.
    fn date(&self, service: Service) -> Option<HeaderValue> {
        let now = (service == Service::Kinesis).then(|| self.kinesis.with(|_, now| now))?;
        let date = DateTime::from_millis(i64::try_from(now).ok()?).fmt(DateFormat::HttpDate).ok()?;
        HeaderValue::from_str(&date).ok()
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
        let reply = match fate.fault {
            Some(Fault::Drop) => return Outcome::Cut,
            Some(Fault::Throttle) => Reply::Whole(call.service.throttled(&call.operation)),
            Some(Fault::ServerError) => Reply::Whole(call.service.failed()),
            Some(Fault::Error { status, code }) => Reply::Whole(call.service.error(status, code)),
            _ => self.apply(call, fate.fault).await,
        };
        match fate.fault {
            Some(Fault::LoseAnswer) => Outcome::Cut,
            Some(Fault::WithholdAnswer) => Outcome::Withheld(reply),
            _ => Outcome::Answered(reply),
        }
    }

    /// Has the service do it, and counts it if it does.
    async fn apply(&self, call: &Call, fault: Option<Fault>) -> Reply {
        let reply = match call.service {
            Service::Kinesis => self.kinesis(call, fault),
            Service::DynamoDb => Reply::Whole(self.dynamodb.call(&call.operation, call.body.clone()).await),
            Service::Sqs => Reply::Whole(self.sqs(call, fault).await),
            Service::S3 => Reply::Whole(self.s3.call(&call.head, &call.body, &call.id).await),
        };
        if matches!(&reply, Reply::Events(_) | Reply::Whole(Answer { status: 200..300, .. })) {
            self.faults.count_accepted(call.service, &call.operation);
        }
        reply
    }

    fn kinesis(&self, call: &Call, fault: Option<Fault>) -> Reply {
        let body = match call.format.read(&call.body) {
            Ok(body) => body,
            Err(error) => return Reply::Whole(Answer::error(400, "SerializationException", &error.to_string())),
        };
        let replied = if (call.service, call.operation.as_str()) == STREAMING {
            let fault = fault.and_then(Fault::of_stream);
            api::input(&body)
                .and_then(|input| Subscription::begin(&self.kinesis, &self.subscribers, input, call.format, fault))
                .map(Reply::Events)
        } else {
            self.put(call, &body, fault).map(|json| Reply::Whole(Answer::ok(json)))
        };
        replied.unwrap_or_else(|error| Reply::refused(&error))
    }
}

/// Calls some of whose entries may be to fail.
impl Server {
    fn put(&self, call: &Call, body: &Bytes, fault: Option<Fault>) -> Result<Bytes, ApiError> {
        let Some((left, taken)) = entries_taken(call, body, fault) else {
            return api::call(&self.kinesis, &call.operation, body).map(Into::into);
        };
        let answer = if taken.is_all() { Vec::new() } else { api::call(&self.kinesis, &call.operation, &left)? };
        Ok(taken.complete(&answer).into())
    }

    async fn sqs(&self, call: &Call, fault: Option<Fault>) -> Answer {
        let Some((left, taken)) = entries_taken(call, &call.body, fault) else {
            return self.sqs.call(&call.operation, &call.body, &call.id).await;
        };
        if taken.is_all() {
            return Answer::ok(taken.complete(b"{}"));
        }
        match self.sqs.call(&call.operation, &left, &call.id).await {
            answer @ Answer { status: 200, .. } => Answer { body: taken.complete(&answer.body).into(), ..answer },
            refused => refused,
        }
    }
}

fn entries_taken(call: &Call, body: &[u8], fault: Option<Fault>) -> Option<(Vec<u8>, batches::Taken)> {
    let Some(Fault::FailEntries { entries, code }) = fault else { return None };
    batches::take(call.service, &call.operation, body, entries, code)
}

fn respond(content_type: &str, id: &str, answer: Answer) -> Response<Body> {
    let mut response = Response::builder()
        .status(StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
        .header("x-amzn-requestid", id);
    if !answer.headers.contains_key(CONTENT_TYPE) {
        response = response.header(CONTENT_TYPE, content_type);
    }
    if let Some(headers) = response.headers_mut() {
        headers.extend(answer.headers);
    }
    if let Some(code) = answer.query_error {
        response = response.header("x-amzn-query-error", code);
    }
    response.body(body::whole(answer.body)).expect("the headers are made of names, numbers and codes")
}
