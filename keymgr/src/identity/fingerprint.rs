//! What a far end is known by.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// SHA-256 of a certificate's SubjectPublicKeyInfo: names the key, whatever certificate it is in.
///
/// Shown as `sha256:` and 64 lower-case hexadecimal digits. Digits of either case, and colons
/// between octets, are read as well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// What is not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a fingerprint: `sha256:` and 64 hexadecimal digits, as `ao-sidecar identity` prints"
)]
pub struct FingerprintError;

impl Fingerprint {
    /// The fingerprint of a key as DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        Self(Sha256::digest(spki_der).into())
    }
}

/// The fingerprint of the key in a DER certificate; `None` if that is not a certificate.
#[must_use]
pub fn spki_fingerprint(certificate_der: &[u8]) -> Option<Fingerprint> {
    let (_, certificate) = X509Certificate::from_der(certificate_der).ok()?;
    Some(Fingerprint::of_public_key(certificate.public_key().raw))
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let (prefix, digits) = text.split_once(':').ok_or(FingerprintError)?;
        if !prefix.eq_ignore_ascii_case("sha256") {
            return Err(FingerprintError);
        }
        let octets: Vec<&[u8]> = if digits.contains(':') {
            digits.split(':').map(str::as_bytes).collect()
        } else {
            digits.as_bytes().chunks(2).collect()
        };
        let octets: Option<Vec<u8>> = octets.into_iter().map(octet).collect();
        let octets = octets.ok_or(FingerprintError)?;
        octets.try_into().map(Self).map_err(|_| FingerprintError)
    }
}

/// The octet that two hexadecimal digits stand for.
fn octet(digits: &[u8]) -> Option<u8> {
    let value = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|v| u8::try_from(v).ok())
    };
    match *digits {
        [high, low] => Some(value(high)? << 4 | value(low)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_again() {
        let fingerprint = Fingerprint::of_public_key(b"key");
        let shown = fingerprint.to_string();
        // `printf key | sha256sum`
        assert_eq!(
            shown,
            "sha256:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"
        );
        assert_eq!(shown.parse(), Ok(fingerprint));
        let digits = &shown["sha256:".len()..];
        let upper = digits.to_uppercase();
        assert_eq!(format!("SHA256:{upper}").parse(), Ok(fingerprint));
        let pairs: Vec<&str> = (0..32).map(|n| &upper[2 * n..2 * n + 2]).collect();
        assert_eq!(
            format!("sha256:{}", pairs.join(":")).parse(),
            Ok(fingerprint)
        );
    }

    #[test]
    fn anything_else_is_refused() {
        let digits = "0123456789abcdef".repeat(4);
        assert!(format!("sha256:{digits}").parse::<Fingerprint>().is_ok());
        for wrong in [
            String::new(),
            digits.clone(),
            format!("sha1:{digits}"),
            format!("sha256:{}", &digits[1..]),
            format!("sha256:{}", &digits[2..]),
            format!("sha256:{digits}0"),
            format!("sha256:{digits}00"),
            format!("sha256:{}:", digits),
            format!("sha256: {}", &digits[1..]),
            format!("sha256:{}g", &digits[1..]),
            format!("sha256:{}é", &digits[2..]),
            format!("sha256:+{}", &digits[1..]),
            format!("sha256:01:23:{}", &digits[4..]),
        ] {
            assert_eq!(
                wrong.parse::<Fingerprint>(),
                Err(FingerprintError),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_fingerprint() {
        assert_eq!(spki_fingerprint(b""), None);
        assert_eq!(spki_fingerprint(&[0x30; 40]), None);
    }
}
