//! gRPC as a client, over containerd's socket: one message, and one or several for an answer ("gRPC over HTTP2").
//!
//! A gRPC library with TLS, code generation and balancing would be many times larger than the page of its protocol that is
//! needed here.

use super::Access;
use super::messages::{Envelope, Event, SubscribeRequest};
use anyhow::{Context, anyhow};
use executors::{Error, Kind, Result};
use h2::RecvStream;
use h2::client::{self, ResponseFuture, SendRequest};
use http::{HeaderMap, Request};
use percent_encoding::percent_decode;
use prost::Message;
use std::io::Cursor;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// How long containerd may take to go on with an answer.
const LIMIT: Duration = Duration::from_secs(30);

/// The largest message in bytes: what containerd's own clients take.
const MAX_MESSAGE: usize = 16 << 20;

/// How much of an answer may be under way, in bytes; containerd sends content in pieces of this size.
const WINDOW: u32 = 1 << 20;

/// What begins the names of containerd's services.
const SERVICES: &str = "containerd.services.";

/// The method that answers with events.
const SUBSCRIBE: &str = "events.v1.Events/Subscribe";

/// A message on its way out.
type Frame = Cursor<Vec<u8>>;

/// A connection to containerd, and the runtime that drives it while a call is made. For threads that may block.
pub struct Connection {
    runtime: Runtime,
    sender: SendRequest<Frame>,
    access: Access,
}

impl Connection {
    /// # Errors
    /// Unavailable.
    pub fn open(access: &Access) -> Result<Connection> {
        let path = access.address.strip_prefix("unix://").unwrap_or(&access.address);
        let runtime = Builder::new_current_thread().enable_io().enable_time().build().context("make a runtime")?;
        let open = async {
            let stream = UnixStream::connect(path).await.context("connect")?;
            let mut builder = client::Builder::new();
            builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
            let (sender, connection) = builder.handshake(stream).await.context("begin HTTP/2")?;
            // Its end is seen by the calls.
            tokio::spawn(connection);
            anyhow::Ok(sender)
        };
        let sender = runtime.block_on(async { timeout(LIMIT, open).await }).context("timeout").flatten();
        let sender = sender.map_err(|error| Error::new(Kind::Unavailable, error).context(path.to_owned()))?;
        Ok(Connection { runtime, sender, access: access.clone() })
    }

    /// Calls a method that answers with one message; the method's name begins with that of a service of containerd's.
    ///
    /// # Errors
    /// The status that containerd answers with, as a kind and in its words; Unavailable without an answer.
    pub fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A> {
        let mut answer = None;
        self.stream(method, request, |message| {
            answer = Some(message);
            Ok(())
        })?;
        answer.ok_or_else(|| Error::new(Kind::Internal, anyhow!("{method}: no message for an answer")))
    }

    /// Calls a method that answers with any number of messages, until they end or `each` fails.
    ///
    /// # Errors
    /// As [`Connection::call`], and those of `each`.
    pub fn stream<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
        mut each: impl FnMut(A) -> Result<()>,
    ) -> Result<()> {
        let exchange = async {
            let mut answer = within(self.send(method, request)).await?;
            while let Some(message) = within(answer.next()).await? {
                each(decode(&message)?)?;
            }
            Ok(())
        };
        self.runtime.block_on(exchange).map_err(|error| self.context(error, method))
    }

    /// Asks for containerd's events from now on.
    ///
    /// # Errors
    /// Unavailable.
    pub fn subscribe(self, request: &SubscribeRequest) -> Result<Subscription> {
        let sent = self.runtime.block_on(within(self.send(SUBSCRIBE, request)));
        let answer = sent.map_err(|error| self.context(error, SUBSCRIBE))?;
        Ok(Subscription { connection: self, answer })
    }

    fn context(&self, error: Error, method: &str) -> Error {
        error.context(format!("{}: {method}", self.access.address))
    }

    async fn send(&self, method: &str, request: &impl Message) -> Result<Answer> {
        let http = Request::post(format!("http://localhost/{SERVICES}{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", &self.access.namespace)
            .body(())
            .context("make a request")?;
        let frame = Cursor::new(frame(&request.encode_to_vec())?);
        let mut sender = self.sender.clone().ready().await.map_err(unavailable)?;
        let (response, mut body) = sender.send_request(http, false).map_err(unavailable)?;
        body.send_data(frame, true).map_err(unavailable)?;
        Ok(Answer { head: Some(response), body: None, buffer: Vec::new() })
    }
}

/// containerd's events.
pub struct Subscription {
    connection: Connection,
    answer: Answer,
}

impl Subscription {
    /// Waits for the next event, for as long as it takes; `None` when `stop` comes before.
    ///
    /// # Errors
    /// Unavailable when containerd ends.
    pub fn next(&mut self, stop: impl Future<Output = ()>) -> Result<Option<Event>> {
        let Subscription { connection, answer } = self;
        let next = connection.runtime.block_on(async {
            tokio::select! {
                biased;
                () = stop => Ok(None),
                message = answer.next() => match message? {
                    Some(message) => {
                        let event = Event::try_from(decode::<Envelope>(&message)?);
                        event.map(Some).map_err(|error| Error::new(Kind::Internal, error))
                    }
                    None => Err(Error::new(Kind::Unavailable, anyhow!("containerd has no more events"))),
                },
            }
        });
        next.map_err(|error| connection.context(error, SUBSCRIBE))
    }
}

/// What is left of an answer.
struct Answer {
    /// Until it has come.
    head: Option<ResponseFuture>,
    /// From then on.
    body: Option<RecvStream>,
    buffer: Vec<u8>,
}

impl Answer {
    /// The next message, or the end.
    async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = unframe(&mut self.buffer)? {
                return Ok(Some(message));
            }
            if let Some(head) = self.head.take() {
                let response = head.await.map_err(unavailable)?;
                check(response.headers())?;
                self.body = Some(response.into_body());
            }
            let Some(body) = &mut self.body else { return Ok(None) };
            match body.data().await {
                Some(data) => {
                    let data = data.map_err(unavailable)?;
                    body.flow_control().release_capacity(data.len()).map_err(unavailable)?;
                    self.buffer.extend_from_slice(&data);
                }
                None => {
                    check(&body.trailers().await.map_err(unavailable)?.unwrap_or_default())?;
                    return if self.buffer.is_empty() {
                        Ok(None)
                    } else {
                        Err(Error::new(Kind::Unavailable, anyhow!("the answer ends within a message")))
                    };
                }
            }
        }
    }
}

async fn within<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    let limit = || Error::new(Kind::Unavailable, anyhow!("no answer within {} s", LIMIT.as_secs()));
    timeout(LIMIT, call).await.map_err(|_| limit()).flatten()
}

fn decode<A: Message + Default>(message: &[u8]) -> Result<A> {
    A::decode(message).map_err(|error| Error::new(Kind::Internal, error))
}

fn unavailable(error: h2::Error) -> Error {
    Error::new(Kind::Unavailable, error)
}

/// A message that is not compressed, behind its length.
fn frame(message: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(message.len()).context("a message of 4 GiB")?;
    Ok([&[0], length.to_be_bytes().as_slice(), message].concat())
}

/// Takes the first message out of what has come, if all of it has.
fn unframe(buffer: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let Some((head, rest)) = buffer.split_first_chunk::<5>() else { return Ok(None) };
    let [compressed, length @ ..] = *head;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 || length > MAX_MESSAGE {
        let message = anyhow!("a message of {length} bytes, compressed: {}", compressed != 0);
        return Err(Error::new(Kind::Internal, message));
    }
    let Some(message) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
    buffer.drain(..5 + length);
    Ok(Some(message))
}

/// The status is in the trailers or, where there is nothing but a status, in the headers.
fn check(headers: &HeaderMap) -> Result<()> {
    let text = |name| headers.get(name).map(|value| percent_decode(value.as_bytes()).decode_utf8_lossy().into_owned());
    let Some(code) = text("grpc-status").filter(|code| code != "0") else { return Ok(()) };
    let message = text("grpc-message").filter(|text| !text.is_empty()).unwrap_or_else(|| format!("gRPC status {code}"));
    // gRPC's "Status codes and their use".
    let kind = match code.as_str() {
        "3" | "11" => Kind::InvalidArgument,
        "5" => Kind::NotFound,
        "6" => Kind::AlreadyExists,
        "9" => Kind::FailedPrecondition,
        "12" => Kind::Unimplemented,
        "1" | "4" | "8" | "14" => Kind::Unavailable,
        _ => Kind::Internal,
    };
    Err(Error::new(kind, anyhow!(message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_pieces() {
        let mut buffer = [frame(b"one").unwrap(), frame(b"").unwrap(), frame(b"three").unwrap()].concat();
        let rest = buffer.split_off(12);
        assert_eq!(unframe(&mut buffer).unwrap().unwrap(), b"one");
        assert_eq!(unframe(&mut buffer).unwrap(), None);
        buffer.extend(rest);
        assert_eq!(unframe(&mut buffer).unwrap().unwrap(), b"");
        assert_eq!(unframe(&mut buffer).unwrap().unwrap(), b"three");
        assert_eq!(unframe(&mut buffer).unwrap(), None);
        assert!(unframe(&mut vec![1, 0, 0, 0, 0]).is_err());
        assert!(unframe(&mut vec![0, 255, 0, 0, 0]).is_err());
    }

    #[test]
    fn a_status_is_a_kind() {
        let of = |code: &'static str, message: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", code.parse().unwrap());
            headers.insert("grpc-message", message.parse().unwrap());
            check(&headers)
        };
        of("0", "").unwrap();
        check(&HeaderMap::new()).unwrap();
        let error = of("5", "image %22a%22: not found").unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::NotFound, "image \"a\": not found"));
        assert_eq!(of("14", "").unwrap_err().kind(), Kind::Unavailable);
    }
}
