//! Lists of CPUs and of NUMA nodes.

use crate::Kind;
use crate::error::{OrKind, Result, bail};

/// The highest number of a CPU or a NUMA node that is understood; runc has the same.
const MAX_NUMBER: usize = 64 * 1024;

/// Numbers as a bit mask, as wide as the highest needs.
pub(crate) type Mask = Box<[u64]>;

/// A list of numbers and ranges, such as `0-3,7`; `None` if it is empty. Spaces and surplus commas are allowed as with runc.
pub(super) fn numbers(list: &str, field: &'static str) -> Result<Option<Mask>> {
    let mut mask = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let number = |text: &str| {
            let number = text.parse::<usize>().or_kind(Kind::InvalidArgument, || format!("{field}: {text:?}"))?;
            if number > MAX_NUMBER {
                bail!(InvalidArgument, "{field}: {number} is more than {MAX_NUMBER}");
            }
            Ok(number)
        };
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            bail!(InvalidArgument, "{field}: {part:?} ends before it begins");
        }
        mask.resize(mask.len().max(last / 64 + 1), 0u64);
        (first..=last).for_each(|number| mask[number / 64] |= 1 << (number % 64));
    }
    if mask.is_empty() && !list.trim().is_empty() {
        bail!(InvalidArgument, "{field}: {list:?} names none");
    }
    Ok(Some(mask.into_boxed_slice()).filter(|mask| !mask.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_bits() {
        let mask = |list| numbers(list, "field").unwrap();
        assert_eq!(mask("0-3,7").as_deref(), Some(&[0x8f][..]));
        assert_eq!(mask(" 64, ,1-2").as_deref(), Some(&[6, 1][..]));
        assert_eq!(mask(""), None);
        assert_eq!(mask("65536").unwrap().len(), 1025);
        for wrong in ["a", "1-", "-1", "3-1", "65537", ",", "99999999999999999999"] {
            let error = numbers(wrong, "field").expect_err(wrong);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().starts_with("field: "), "{error}");
        }
    }
}
