//! gRPC calls with one message either way, over containerd's socket.
//!
//! A gRPC library with TLS and code generation would be many times larger than what the tests need of it, which is on one
//! page of its protocol ("gRPC over HTTP2").
use super::PATIENCE;
use anyhow::{Context, Result, bail, ensure};
use h2::client;
use http::{HeaderMap, Request};
use prost::Message;
use std::path::PathBuf;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Where the calls go to.
pub struct Grpc {
    socket: PathBuf,
    /// containerd's namespace, for its own services.
    namespace: &'static str,
}

impl Grpc {
    pub fn new(socket: PathBuf, namespace: &'static str) -> Grpc {
        Grpc { socket, namespace }
    }

    /// Calls the method `package.Service/Method`.
    ///
    /// # Errors
    /// The status that containerd answers with, in words.
    pub fn call<Answer: Message + Default>(&self, method: &str, request: &impl Message) -> Result<Answer> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let answer =
            runtime.block_on(async { timeout(PATIENCE, self.exchange(method, request.encode_to_vec())).await });
        let answer = answer.with_context(|| format!("{method}: no answer"))?.with_context(|| method.to_owned())?;
        Answer::decode(answer.as_slice()).with_context(|| format!("{method}: decode the answer"))
    }

    async fn exchange(&self, path: &str, message: Vec<u8>) -> Result<Vec<u8>> {
        let stream = UnixStream::connect(&self.socket).await.context("connect to containerd")?;
        let (sender, connection) = client::handshake(stream).await.context("begin HTTP/2")?;
        let connection = tokio::spawn(connection);
        let request = Request::post(format!("http://localhost/{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", self.namespace)
            .body(())
            .context("make a request")?;
        let mut sender = sender.ready().await.context("wait for the connection")?;
        let (response, mut body) = sender.send_request(request, false).context("send a request")?;
        body.send_data(frame(&message)?.into(), true).context("send a message")?;
        let response = response.await.context("wait for the answer")?;
        check(response.headers())?;
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.context("read the answer")?;
            body.flow_control().release_capacity(data.len()).context("read on")?;
            bytes.extend_from_slice(&data);
        }
        check(&body.trailers().await.context("read the status")?.unwrap_or_default())?;
        drop(sender);
        connection.abort();
        unframe(bytes)
    }
}

/// A message that is not compressed, behind its length.
fn frame(message: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(message.len()).context("a message of 4 GiB")?;
    Ok([&[0], length.to_be_bytes().as_slice(), message].concat())
}

fn unframe(mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    ensure!(bytes.len() >= 5 && bytes[0] == 0, "not one plain message: {bytes:?}");
    let message = bytes.split_off(5);
    ensure!(bytes[1..] == (message.len() as u32).to_be_bytes(), "not one message");
    Ok(message)
}

/// The status is in the trailers or, where there is nothing but a status, in the headers.
fn check(headers: &HeaderMap) -> Result<()> {
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match text("grpc-status").as_deref() {
        None | Some("0") => Ok(()),
        Some(code) => bail!("gRPC status {code}: {}", text("grpc-message").unwrap_or_default()),
    }
}
