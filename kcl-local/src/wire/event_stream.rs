//! The frames of `application/vnd.amazon.eventstream`, in which the answer to SubscribeToShard comes.

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use bytes::Bytes;
use serde_json::json;

use super::cbor;
use super::format::Format;

/// The content type of the whole answer, whatever the format of the frames' payloads.
pub(super) const CONTENT_TYPE: &str = "application/vnd.amazon.eventstream";

/// The first frame: what the operation answers apart from its events, which is nothing. Some SDKs insist on it.
pub(super) fn initial_response(format: Format) -> Bytes {
    frame(format, "event", (":event-type", "initial-response"), b"{}".as_slice().into())
}

/// An event of this type, given as JSON.
pub(super) fn event(format: Format, event_type: &str, json: Bytes) -> Bytes {
    frame(format, "event", (":event-type", event_type), json)
}

/// The error that a stream ends with.
pub(super) fn exception(format: Format, code: &str, message: &str) -> Bytes {
    let json = json!({ "message": message }).to_string().into();
    frame(format, "exception", (":exception-type", code), json)
}

fn frame(format: Format, message_type: &str, (type_header, type_name): (&'static str, &str), json: Bytes) -> Bytes {
    // SDKs read payloads in the format that they wrote the request in; the header repeats it.
    let content_type = match format {
        Format::Json => "application/json",
        Format::Cbor => cbor::CONTENT_TYPE,
    };
    let header = |name: &'static str, value: &str| Header::new(name, HeaderValue::String(value.to_owned().into()));
    let message = Message::new(format.write(json))
        .add_header(header(type_header, type_name))
        .add_header(header(":content-type", content_type))
        .add_header(header(":message-type", message_type));
    let mut frame = Vec::with_capacity(message.payload().len() + 160);
    write_message_to(&message, &mut frame).expect("headers are short names, and payloads far below 4 GiB");
    frame.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_smithy_eventstream::frame::read_message_from;

    fn read(frame: Bytes) -> (Vec<(String, String)>, Bytes) {
        let message = read_message_from(frame).unwrap();
        let text = |header: &Header| (header.name().as_str().to_owned(), header.value().as_string().unwrap().as_str().to_owned());
        (message.headers().iter().map(text).collect(), message.payload().clone())
    }

    fn headers(of: [(&str, &str); 3]) -> Vec<(String, String)> {
        of.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    #[test]
    fn frames_say_what_they_are() {
        let json = (":content-type", "application/json");
        let (event, payload) = read(event(Format::Json, "SubscribeToShardEvent", b"{\"Records\":[]}".as_slice().into()));
        assert_eq!(event, headers([(":event-type", "SubscribeToShardEvent"), json, (":message-type", "event")]));
        assert_eq!(payload, b"{\"Records\":[]}".as_slice());
        let (initial, payload) = read(initial_response(Format::Json));
        assert_eq!(initial, headers([(":event-type", "initial-response"), json, (":message-type", "event")]));
        assert_eq!(payload, b"{}".as_slice());
        let (exception, payload) = read(exception(Format::Json, "ResourceInUseException", "taken"));
        assert_eq!(exception, headers([(":exception-type", "ResourceInUseException"), json, (":message-type", "exception")]));
        assert_eq!(payload, b"{\"message\":\"taken\"}".as_slice());
    }

    #[test]
    fn payloads_are_in_the_callers_format() {
        let (headers, payload) = read(event(Format::Cbor, "SubscribeToShardEvent", b"{\"MillisBehindLatest\":7}".as_slice().into()));
        assert_eq!(headers[1], (":content-type".to_owned(), cbor::CONTENT_TYPE.to_owned()));
        assert_eq!(cbor::to_json(&payload).unwrap(), b"{\"MillisBehindLatest\":7}");
    }
}
