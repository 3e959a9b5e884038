//! The certificates that prove `tls://` servers: the operator's own choice, or the system's. None are built in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Where systems keep their certificates in one file: Debian and Arch, Fedora and its kin, openSUSE, Alpine and the BSDs.
const BUNDLES: [&str; 4] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];

/// A TLS configuration, or why there is none.
pub struct Roots(Result<Arc<ClientConfig>, String>);

impl Roots {
    /// For when nobody is asked over TLS.
    pub fn unread() -> Roots {
        Roots(Err("no certificates were read".to_string()))
    }

    /// Reads the certificates of this PEM file; without one, of the file that `SSL_CERT_FILE` names, else of the system's.
    pub fn read(file: Option<&Path>) -> Roots {
        let chosen = file.map(Path::to_path_buf).or_else(|| std::env::var_os("SSL_CERT_FILE").map(PathBuf::from));
        let found = chosen.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()));
        Roots(match found {
            Some(path) => config(&path),
            None => Err(format!("there is no file of certificates at {}; install ca-certificates or set SSL_CERT_FILE", BUNDLES[0])),
        })
    }

    /// The configuration, or why there is none.
    pub fn config(&self) -> Result<Arc<ClientConfig>, String> {
        self.0.clone()
    }
}

fn config(path: &Path) -> Result<Arc<ClientConfig>, String> {
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|why| format!("cannot read certificates from {}: {why}", path.display()))?;
    let mut store = RootCertStore::empty();
    // A bundle may hold certificates of forms that are not understood; the others count.
    store.add_parsable_certificates(certificates.filter_map(Result::ok));
    if store.is_empty() {
        return Err(format!("there is no certificate in {}", path.display()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|why| why.to_string())?;
    Ok(Arc::new(builder.with_root_certificates(store).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(path: &Path) -> String {
        Roots::read(Some(path)).config().unwrap_err()
    }

    #[test]
    fn a_file_that_is_missing_or_holds_no_certificate_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("roots.pem");
        assert!(error(&path).starts_with(&format!("cannot read certificates from {}: ", path.display())), "{}", error(&path));
        std::fs::write(&path, "nothing of the kind").unwrap();
        assert_eq!(error(&path), format!("there is no certificate in {}", path.display()));
    }

    #[test]
    fn a_certificate_is_read_from_pem() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let certificate = rcgen::generate_simple_self_signed(["dns.example".to_string()]).unwrap();
        std::fs::write(file.path(), certificate.cert.pem()).unwrap();
        assert!(Roots::read(Some(file.path())).config().is_ok());
    }
}
