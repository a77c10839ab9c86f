//! Errors, exits and times in containerd's terms.

use crate::task::{Freezer, State};
use containerd_shim_protos::types::task::Status;
use executors::{Error, Kind};
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};
use ttrpc::Code;

/// The one table of error codes. containerd turns them back into its own errors (errdefs).
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::Unimplemented => Code::UNIMPLEMENTED,
        Kind::Unavailable => Code::UNAVAILABLE,
        Kind::Internal => Code::INTERNAL,
    }
}

/// The error as it goes to containerd: its code, and the chain of causes in one line.
pub fn rpc_error(error: &Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code(error.kind()), error))
}

/// The state as the task API names it. What has stopped is no longer paused.
pub fn task_status(state: &State, freezer: Freezer) -> Status {
    match (state, freezer) {
        (State::Stopped(_), _) => Status::STOPPED,
        (_, Freezer::Frozen) => Status::PAUSED,
        (_, Freezer::Freezing) => Status::PAUSING,
        (State::Created, Freezer::Thawed) => Status::CREATED,
        (State::Running, Freezer::Thawed) => Status::RUNNING,
    }
}

/// A point in time as protobuf has it. One before 1970 (a clock that was never set) counts back from it.
pub fn timestamp(time: SystemTime) -> MessageField<Timestamp> {
    let nanos = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap_or(i128::MAX),
    };
    const SECOND: i128 = 1_000_000_000;
    let mut timestamp = Timestamp::new();
    timestamp.seconds = i64::try_from(nanos.div_euclid(SECOND)).unwrap_or(i64::MAX);
    timestamp.nanos = i32::try_from(nanos.rem_euclid(SECOND)).unwrap_or_default();
    MessageField::some(timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_count_from_1970_both_ways() {
        let of = |time| {
            let field = timestamp(time);
            (field.seconds, field.nanos)
        };
        assert_eq!(of(UNIX_EPOCH), (0, 0));
        assert_eq!(of(UNIX_EPOCH + Duration::new(7, 5)), (7, 5));
        assert_eq!(of(UNIX_EPOCH - Duration::new(0, 1)), (-1, 999_999_999));
    }

    #[test]
    fn errors_keep_their_kind_and_their_chain() {
        let error = Error::new(Kind::NotFound, "gone".parse::<i32>().unwrap_err()).context("container a");
        let ttrpc::Error::RpcStatus(status) = rpc_error(&error) else { panic!("a status") };
        assert_eq!(status.code(), Code::NOT_FOUND);
        assert_eq!(status.message(), "container a: invalid digit found in string");
    }
}
