//! SHA-256 and other digests as people write them.

use sha2::{Digest, Sha256};

/// SHA-256 of `bytes` in hexadecimal.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes))
}

/// Two lower-case digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_by_hand() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
        // FIPS 180-4, the example of one block.
        assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
