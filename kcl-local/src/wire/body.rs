//! The body of an HTTP answer: there whole, or made frame by frame while it is sent.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};

/// Either kind. hyper asks a body for more only when the connection takes more, so one that makes frames as it is
/// asked is held back by a client that does not read.
pub(super) type Body = UnsyncBoxBody<Bytes, Cut>;

/// The connection is to end without an answer, or in the middle of one (over HTTP/2: the stream of the request); hyper
/// does so when the service of a request or a body fails.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut by an injected fault, or by the server's stop")]
pub(super) struct Cut;

/// A body that is there whole.
pub(super) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
