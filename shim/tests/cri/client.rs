//! Calls of the Container Runtime Interface.
use crate::api::{ImageSpec, ImageStatusRequest, ImageStatusResponse};
use crate::harness::grpc::Grpc;
use anyhow::Result;
use prost::Message;
use std::path::PathBuf;

/// Where the calls go to.
pub struct Client(Grpc);

impl Client {
    pub fn new(socket: PathBuf) -> Client {
        Client(Grpc::new(socket, "k8s.io"))
    }

    /// Calls a method of the RuntimeService.
    ///
    /// # Errors
    /// The status that containerd answers with, in words.
    pub fn call<Answer: Message + Default>(&self, method: &str, request: &impl Message) -> Result<Answer> {
        self.0.call(&format!("runtime.v1.RuntimeService/{method}"), request)
    }

    /// Whether the ImageService knows an image.
    pub fn has_image(&self, reference: &str) -> Result<bool> {
        let request =
            ImageStatusRequest { image: Some(ImageSpec { image: reference.to_owned(), ..Default::default() }) };
        let answer: ImageStatusResponse = self.0.call("runtime.v1.ImageService/ImageStatus", &request)?;
        Ok(answer.image.is_some())
    }
}
