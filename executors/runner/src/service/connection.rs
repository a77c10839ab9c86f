//! One connection: HTTP/1.1, or HTTP/2 of a client that knows beforehand (RFC 9113, 3.3).

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Executor, Sleep, Timer};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use wasmtime_wasi_http::io::TokioIo;

use super::answer::Answerer;

/// How long a client may take for the head of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a client that has no answer to come may take at the end: for the rest of a request that it has begun, or to hear
/// of the end.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What a connection of HTTP/2 begins with, as far as no request of HTTP/1.1 does.
const PREFACE: &[u8; 4] = b"PRI ";

/// Serves a connection to its end: the client's, or after `end` that of the requests that are being answered.
pub(super) async fn serve(mut stream: TcpStream, answerer: Answerer, mut end: watch::Receiver<bool>) {
    // As the guest writes it, so it is sent.
    let _ = stream.set_nodelay(true);
    let mut head = Vec::with_capacity(PREFACE.len());
    let begun = async {
        while head.len() < PREFACE.len() && PREFACE.starts_with(&head) {
            let mut rest = (&mut stream).take((PREFACE.len() - head.len()) as u64);
            if rest.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    let begun = tokio::select! {
        begun = tokio::time::timeout(PATIENCE, begun) => matches!(begun, Ok(Ok(()))),
        _ = end.wait_for(|end| *end) => false,
    };
    if !begun {
        return;
    }
    let is_http2 = head == PREFACE;
    let open = Open::default();
    let io = TokioIo::new(Begun { head, stream, open: open.clone() });
    let of_requests = open.clone();
    let service = service_fn(move |request| answerer.clone().answer(request, of_requests.clone()));
    // What goes wrong here is the client's doing, and its own affair.
    if is_http2 {
        let mut builder = http2::Builder::new(Tasks);
        let connection = builder.timer(Clock).serve_connection(io, service);
        until(connection, &mut end, &open, |connection| connection.graceful_shutdown()).await;
    } else {
        let mut builder = http1::Builder::new();
        let builder = builder.timer(Clock).header_read_timeout(PATIENCE);
        let connection = builder.serve_connection(io, service);
        until(connection, &mut end, &open, |connection| connection.graceful_shutdown()).await;
    }
}

/// Serves a connection to its end. When the end of all is asked for before, `shutdown` lets it finish what it has begun.
async fn until<C: Future>(
    connection: C,
    end: &mut watch::Receiver<bool>,
    open: &Open,
    shutdown: impl FnOnce(Pin<&mut C>),
) {
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        _ = connection.as_mut() => true,
        _ = end.wait_for(|end| *end) => false,
    };
    if ended {
        return;
    }
    shutdown(connection.as_mut());
    while tokio::time::timeout(LAST_WORD, connection.as_mut()).await.is_err() && !open.is_quiet() {}
}

/// What a connection still has to do. Each request that is being answered holds one.
#[derive(Clone, Default)]
pub(super) struct Open(Arc<AtomicBool>);

impl Open {
    /// Those of the connection itself: that of [`serve`], of the stream and of the service.
    const OWN: usize = 3;

    /// Whether nothing is being answered and nothing of an answer waits for the client.
    fn is_quiet(&self) -> bool {
        Arc::strong_count(&self.0) == Open::OWN && !self.0.load(Relaxed)
    }

    /// Notes whether the client keeps us from writing.
    fn written<T>(&self, outcome: Poll<T>) -> Poll<T> {
        self.0.store(outcome.is_pending(), Relaxed);
        outcome
    }
}

/// A connection of which something has been read.
struct Begun {
    head: Vec<u8>,
    stream: TcpStream,
    open: Open,
}

impl AsyncRead for Begun {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.head.len().min(buffer.remaining());
        buffer.put_slice(&self.head[..length]);
        self.head.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.open.written(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Runs the streams of HTTP/2.
#[derive(Clone)]
struct Tasks;

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

/// The clock of hyper's time limits.
#[derive(Clone)]
struct Clock;

struct Sleeping(Pin<Box<tokio::time::Sleep>>);

impl Future for Sleeping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl Sleep for Sleeping {}

impl Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(Sleeping(Box::pin(tokio::time::sleep(duration))))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Sleeping(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }
}
