//! Who a sample is: its uid, and its name in the output.

use oqvl_shard_io::{SampleKey, Uid};
use serde_json::{Map, Value};

use crate::reject::Reject;

/// What a sample is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its uid; for a sample without one, derived from its key.
    pub(crate) uid: Uid,
    /// Its key in the output: `{uid}-0` as the DataComp resharder has it, or the old key without a uid.
    pub(crate) output_key: SampleKey,
    /// Which of the two its name comes from.
    pub(crate) named_by: NamedBy,
}

/// Where the name of a sample comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// Its metadata hold a uid.
    Uid,
    /// They do not.
    Key,
}

/// Reads the identity off the `json` member: its object, none if there is no member, an error if it is no object.
pub(crate) fn identify(
    key: &SampleKey,
    metadata: Result<Option<&Map<String, Value>>, ()>,
) -> Result<Identity, Reject> {
    let metadata = metadata.map_err(|()| Reject::BadMetadata)?;
    match metadata.and_then(|fields| fields.get("uid")) {
        None | Some(Value::Null) => {
            let uid = uid_of_key(key.as_str());
            Ok(Identity { uid, output_key: key.clone(), named_by: NamedBy::Key })
        }
        Some(Value::String(text)) => {
            let uid: Uid = text.parse().map_err(|_| Reject::BadUid)?;
            Ok(Identity { uid, output_key: output_key(uid), named_by: NamedBy::Uid })
        }
        Some(_) => Err(Reject::BadUid),
    }
}

/// What the DataComp resharder calls the first sample with this uid: `{uid}-0`. The sample's `json` keeps its old key
/// (oddity D9 of the reference, matched). There, a uid that the subset lists twice gives a second sample `{uid}-1`
/// (D7); here a list is a set, and `dedup = ["uid"]` drops second samples.
pub(crate) fn output_key(uid: Uid) -> SampleKey {
    SampleKey::new(format!("{uid}-0")).expect("hexadecimal digits make a key")
}

/// Stands for the uid of a sample without one: the first 128 bits of its key's BLAKE3 digest.
pub(crate) fn uid_of_key(key: &str) -> Uid {
    let digest = blake3::hash(key.as_bytes());
    let half = |start: usize| {
        let bytes = digest.as_bytes()[start..start + 8].try_into().expect("the slice has 8 bytes");
        u64::from_be_bytes(bytes)
    };
    Uid::from_halves(half(0), half(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: Option<&str>) -> Result<(String, String), Reject> {
        let key = SampleKey::new("000000007").unwrap();
        let metadata = json.map(|json| serde_json::from_str(json).map_err(|_| ())).transpose();
        identify(&key, metadata.as_ref().map(Option::as_ref).map_err(|_| ()))
            .map(|identity| (identity.uid.to_string(), identity.output_key.to_string()))
    }

    #[test]
    fn a_uid_names_the_sample() {
        let uid = "00000000000000000123456789abcdef";
        let expected = Ok((uid.to_owned(), format!("{uid}-0")));
        assert_eq!(check(Some(&format!(r#"{{"uid": "{uid}"}}"#))), expected);
        assert_eq!(check(Some(&format!(r#"{{"uid": "{}"}}"#, uid.to_uppercase()))), expected);
    }

    #[test]
    fn without_a_uid_the_key_does() {
        let digest = blake3::hash(b"000000007").to_hex().to_string();
        let expected = Ok((digest[..32].to_owned(), "000000007".to_owned()));
        for json in [None, Some("{}"), Some(r#"{"uid": null}"#)] {
            assert_eq!(check(json), expected);
        }
    }

    #[test]
    fn rubbish_is_rejected() {
        for json in ["", "{", "[]", "7", "null"] {
            assert_eq!(check(Some(json)), Err(Reject::BadMetadata), "{json}");
        }
        for uid in ["\"\"", "\"7\"", "7", "[]", "\"0000000000000000000000000000000g\""] {
            assert_eq!(check(Some(&format!(r#"{{"uid": {uid}}}"#))), Err(Reject::BadUid), "{uid}");
        }
    }
}
