//! One request: to an instance, and its answer back, or what is said when there is none.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::handler::{InstantiationError, ProxyHandler, TrapOrPanicError};
use wasmtime_wasi_http::{Error, WasiBody};

use super::MAX_REQUESTS;
use super::activity::{Active, Activity};
use super::connection::Open;
use super::pool::Pool;
use crate::metrics::Metrics;

/// Answers requests.
#[derive(Clone)]
pub(super) struct Answerer(Arc<Inner>);

struct Inner {
    handler: ProxyHandler<Pool>,
    room: Arc<Semaphore>,
    name: String,
    metrics: Arc<Metrics>,
    activity: Activity,
}

impl Answerer {
    pub fn new(pool: Pool, name: String, metrics: Arc<Metrics>, activity: Activity) -> Answerer {
        let room = Arc::new(Semaphore::new(MAX_REQUESTS));
        Answerer(Arc::new(Inner { handler: ProxyHandler::new(pool), room, name, metrics, activity }))
    }

    /// Answers one request, always.
    pub async fn answer(self, request: http::Request<Incoming>, open: Open) -> Result<Response<Counted>, Infallible> {
        let inner = &self.0;
        let place = inner.room.clone().acquire_owned().await.ok();
        let counted = Arc::new(InFlight::new(inner));
        let what = format!("{} {}", request.method(), request.uri());
        let response = if let Some(request) = with_target(request) {
            let request = request.map(|body| body.map_err(Error::from).boxed_unsync());
            match inner.handler.handle(Waiting(Arc::downgrade(&counted)), request).await {
                Ok(response) => response,
                Err(error) => {
                    // What trapped has been told of with its instance.
                    if !error.is::<TrapOrPanicError>() {
                        eprintln!("hybrid: {}: {what}: {error:?}", inner.name);
                    }
                    plain(if error.is::<InstantiationError<Waiting>>() {
                        StatusCode::SERVICE_UNAVAILABLE
                    } else {
                        StatusCode::INTERNAL_SERVER_ERROR
                    })
                }
            }
        } else {
            plain(StatusCode::BAD_REQUEST)
        };
        let class = usize::from(response.status().as_u16() / 100).clamp(1, 5) - 1;
        inner.metrics.responses[class].fetch_add(1, Relaxed);
        Ok(response.map(|body| Counted { body, _held: (place, counted, open) }))
    }
}

/// Completes a request's target by its Host (RFC 9110, 7.1), as guests ask for scheme and authority. `None` if there is no
/// Host to take, or a wrong one (RFC 9112, 3.2).
fn with_target(mut request: http::Request<Incoming>) -> Option<http::Request<Incoming>> {
    if request.uri().authority().is_none() {
        let mut target = std::mem::take(request.uri_mut()).into_parts();
        target.authority = Some(Authority::try_from(request.headers().get(header::HOST)?.as_bytes()).ok()?);
        target.scheme = Some(Scheme::HTTP);
        *request.uri_mut() = Uri::from_parts(target).ok()?;
    }
    Some(request)
}

/// A response of our own.
fn plain(status: StatusCode) -> Response<WasiBody> {
    let text = Bytes::from(format!("{status}\n"));
    let body = Full::new(text).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Counts a request until it is dropped.
struct InFlight {
    metrics: Arc<Metrics>,
    _active: Active,
}

impl InFlight {
    fn new(inner: &Inner) -> InFlight {
        inner.metrics.requests.fetch_add(1, Relaxed);
        InFlight { metrics: inner.metrics.clone(), _active: inner.activity.begin() }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.requests.fetch_sub(1, Relaxed);
    }
}

/// A request as the pool knows it.
pub(super) struct Waiting(Weak<InFlight>);

impl Waiting {
    /// Whether there still is somebody who waits for the answer.
    pub fn is_wanted(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// A response's body. Until it is sent, or given up, its request is being answered.
pub(super) struct Counted {
    body: WasiBody,
    _held: (Option<OwnedSemaphorePermit>, Arc<InFlight>, Open),
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
