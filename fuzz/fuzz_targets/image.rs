#![no_main]
//! The documents of an image: its modules or an error, never a panic. See `executors::fuzzing`.

use executors::Kind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|documents: &[u8]| {
    if let Err(error) = executors::fuzzing::image(documents) {
        assert!(matches!(error.kind(), Kind::InvalidArgument | Kind::NotFound | Kind::Unimplemented), "{error:?}");
    }
});
