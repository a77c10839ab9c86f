//! containerd's own API, for what no task request has: images and their content.
//!
//! Only what is not in a bundle is asked for, so a container whose program is in its root file system opens no connection; and
//! none outlives the creation that needed it.

mod grpc;
mod messages;
mod snapshot;

pub use grpc::Connection;
pub use messages::{Event, SubscribeRequest};
pub use snapshot::View;

use anyhow::anyhow;
use executors::{Digest, Error, ImageRecord, ImageStore, Kind, Result};
use messages::{
    GetContainerRequest, GetContainerResponse, GetImageRequest, GetImageResponse, ReadContentRequest,
    ReadContentResponse,
};
use std::cell::{RefCell, RefMut};
use std::io::Write;

/// How containerd's API is reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// containerd's gRPC socket; empty where there is none.
    pub address: String,
    pub namespace: String,
}

/// Whose image it is.
enum Wanted {
    Container(String),
    Image(String),
}

/// One of containerd's images, and all content.
pub struct Images {
    access: Access,
    wanted: Wanted,
    /// Opened with the first call.
    connection: RefCell<Option<Connection>>,
}

impl Images {
    /// The image of the container with this id.
    pub fn of_container(access: &Access, id: &str) -> Images {
        Images::new(access, Wanted::Container(id.to_owned()))
    }

    /// The image of this name.
    pub fn named(access: &Access, name: &str) -> Images {
        Images::new(access, Wanted::Image(name.to_owned()))
    }

    fn new(access: &Access, wanted: Wanted) -> Images {
        Images { access: access.clone(), wanted, connection: RefCell::default() }
    }

    fn connection(&self) -> Result<RefMut<'_, Connection>> {
        let mut connection = self.connection.borrow_mut();
        if connection.is_none() {
            *connection = Some(Connection::open(&self.access)?);
        }
        RefMut::filter_map(connection, Option::as_mut)
            .map_err(|_| Error::new(Kind::Internal, anyhow!("a connection that was just opened")))
    }

    /// The name of the image; a container that containerd doesn't know has none.
    fn name(&self) -> Result<Option<String>> {
        let request = match &self.wanted {
            Wanted::Image(name) => return Ok(Some(name.clone())),
            Wanted::Container(id) => GetContainerRequest { id: id.clone() },
        };
        let answer = self.connection()?.call("containers.v1.Containers/Get", &request);
        let container = found::<GetContainerResponse>(answer)?.and_then(|answer| answer.container);
        Ok(container.map(|container| container.image).filter(|image| !image.is_empty()))
    }
}

impl ImageStore for Images {
    fn image(&self) -> Result<Option<ImageRecord>> {
        if self.access.address.is_empty() {
            return Ok(None);
        }
        let Some(name) = self.name()? else { return Ok(None) };
        let answer = self.connection()?.call("images.v1.Images/Get", &GetImageRequest { name });
        let Some(image) = found::<GetImageResponse>(answer)?.and_then(|answer| answer.image) else { return Ok(None) };
        let target = image.target.unwrap_or_default();
        let size = u64::try_from(target.size).unwrap_or_default();
        Ok(Some(ImageRecord { name: image.name, labels: image.labels, target: target.digest, size }))
    }

    fn read(&self, digest: &Digest, to: &mut dyn Write) -> Result<()> {
        let request = ReadContentRequest { digest: digest.to_string(), ..Default::default() };
        self.connection()?.stream("content.v1.Content/Read", &request, |answer: ReadContentResponse| {
            to.write_all(&answer.data).map_err(|error| Error::new(Kind::Unavailable, error))
        })
    }
}

/// What there is, if it is there.
fn found<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}
