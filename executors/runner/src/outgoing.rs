//! Requests that a guest sends: by the same policy as its sockets, and with names looked up in the same way.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::network::{Failure, Policy};

/// How long is waited where the guest doesn't say.
const PATIENCE: Duration = Duration::from_secs(600);

/// Sends requests.
pub(crate) struct Outgoing {
    policy: Arc<Policy>,
}

impl Outgoing {
    pub fn new(policy: Arc<Policy>) -> Outgoing {
        Outgoing { policy }
    }
}

type Driven = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        // Whether the response was read to its end; a connection is not used again, so it doesn't matter here.
        _read: Driven,
    ) -> Box<dyn Future<Output = Result<(http::Response<WasiBody>, Driven), Error>> + Send> {
        let policy = self.policy.clone();
        Box::new(async move { send(&policy, request, options.unwrap_or_default()).await })
    }
}

/// Sends one request on a connection of its own. With the response comes what drives the connection to its end.
async fn send(
    policy: &Policy,
    mut request: http::Request<WasiBody>,
    options: RequestOptions,
) -> Result<(http::Response<WasiBody>, Driven), Error> {
    let uri = request.uri();
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    let by_tls = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
    let port = authority.port_u16().unwrap_or(if by_tls { 443 } else { 80 });
    let host = authority.host().to_owned();
    // The server gets the path alone; the rest is in the Host header.
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    let patience = options.connect_timeout.unwrap_or(PATIENCE);
    let connected = timeout(patience, async {
        let stream = connect(policy, &host, port).await?;
        let stream = if by_tls { encrypt(stream, &host).await? } else { Box::new(stream) };
        Ok(hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?)
    });
    let (mut sender, connection) = connected.await.unwrap_or(Err(Error::ConnectionTimeout))?;
    let mut connection = Box::pin(connection);
    let patience = options.first_byte_timeout.unwrap_or(PATIENCE);
    let mut response = pin!(timeout(patience, sender.send_request(request)));
    let mut ended = false;
    let response = std::future::poll_fn(|cx| {
        if !ended && let Poll::Ready(result) = connection.as_mut().poll(cx) {
            ended = true;
            result?;
        }
        response.as_mut().poll(cx).map(|response| match response {
            Ok(response) => Ok(response?),
            Err(_) => Err(Error::ConnectionReadTimeout),
        })
    })
    .await?;
    let patience = options.between_bytes_timeout.unwrap_or(PATIENCE);
    let response = response.map(|body| Timed { body, patience, clock: Box::pin(tokio::time::sleep(patience)) });
    let driven: Driven = Box::new(async move { if ended { Ok(()) } else { Ok(connection.await?) } });
    Ok((response.map(BodyExt::boxed_unsync), driven))
}

/// Connects to the first address of a host that takes it.
async fn connect(policy: &Policy, host: &str, port: u16) -> Result<TcpStream, Error> {
    let addresses = match address(host) {
        Some(address) => vec![address],
        None => {
            let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
            policy.resolve(&name).await.map_err(|failure| match failure {
                Failure::Denied => Error::HttpRequestDenied,
                Failure::Unknown => dns_error("NXDOMAIN"),
                Failure::Unanswered => Error::DnsTimeout,
            })?
        }
    };
    let mut error = Error::HttpRequestDenied;
    for address in addresses.into_iter().map(|address| SocketAddr::new(address, port)) {
        if policy.reaches(address) {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // As the guest writes it, so it is sent.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(e) => error = Error::Connect(e),
            }
        }
    }
    Err(error)
}

fn dns_error(rcode: &str) -> Error {
    Error::DnsError { rcode: Some(rcode.to_owned()), info_code: None }
}

/// The address that a host is, where it is one: as it stands, or of version 6 in brackets.
fn address(host: &str) -> Option<IpAddr> {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).parse().ok()
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// TLS with Mozilla's roots, which are built in, as the wasmtime command has it.
async fn encrypt(stream: TcpStream, host: &str) -> Result<Box<dyn Stream>, Error> {
    let name = match address(host) {
        Some(address) => ServerName::from(address),
        None => ServerName::try_from(host.to_owned())?,
    };
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    Ok(Box::new(connector.connect(name, stream).await.map_err(tls_error)?))
}

/// A certificate that is not trusted has a name of its own in `wasi:http`.
fn tls_error(error: std::io::Error) -> Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
        _ => Error::Tls(error),
    }
}

/// A response's body that must not keep its reader waiting for longer than `patience`.
struct Timed {
    body: Incoming,
    patience: Duration,
    clock: Pin<Box<tokio::time::Sleep>>,
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match frame {
            Poll::Ready(frame) => {
                let next = tokio::time::Instant::now() + self.patience;
                self.clock.as_mut().reset(next);
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => self.clock.as_mut().poll(cx).map(|()| Some(Err(Error::ConnectionReadTimeout))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
