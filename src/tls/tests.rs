//! Certificates made here, files in a directory of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::follow::Followed;
use super::*;
use crate::config::{self, ClientAuth, Severity, TlsClient, TlsIdentity, TlsServer};

/// An authority and a directory for what it issues.
struct Place {
    directory: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Place {
    fn new() -> Place {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let directory = tempfile::tempdir().unwrap();
        // Every authority has a name of its own: two of one name with different keys are a forgery.
        params.distinguished_name.push(DnType::CommonName, directory.path().display().to_string());
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let place = Place { directory, authority };
        place.write("ca", &place.authority.pem());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), PermissionsExt::from_mode(0o600)).unwrap();
        self.path(name)
    }

    /// A certificate for these names, until this year.
    fn issue(&self, name: &str, names: &[&str], last_year: i32) -> TlsIdentity {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(last_year, 12, 31));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        TlsIdentity {
            cert_file: self.write(&format!("{name}.crt"), &certificate.pem()),
            key_file: self.write(&format!("{name}.key"), &key.serialize_pem()),
        }
    }

    fn server(&self, identity: TlsIdentity, client_auth: ClientAuth) -> TlsServer {
        TlsServer { identity, ca_file: Some(self.path("ca")), client_auth }
    }

    fn client(&self, identity: Option<TlsIdentity>) -> TlsClient {
        TlsClient { ca_file: Some(self.path("ca")), identity, server_name: None }
    }
}

/// Both ends of a connection, or why each has none.
async fn meet(server: &Server, client: &Client, host: &str) -> (Result<Stream, String>, Result<Stream, String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (tcp, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (client, server) = tokio::join!(client.connect(host, tcp.unwrap()), server.accept(accepted.unwrap().0));
    (server.map_err(|error| error.to_string()), client.map_err(|error| error.to_string()))
}

#[tokio::test]
async fn bytes_go_both_ways_and_all_on_the_wire_are_counted() {
    let place = Place::new();
    let server = Server::load(&place.server(place.issue("a", &["localhost"], 2999), ClientAuth::Required)).unwrap();
    let client = Client::load(&place.client(Some(place.issue("b", &["sender.test"], 2999)))).unwrap();
    let (accepted, connected) = meet(&server, &client, "localhost").await;
    let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
    assert_eq!((accepted.peer_name(), connected.peer_name()), (Some("sender.test".into()), Some("localhost".into())));
    let before = connected.wire_bytes().unwrap();
    connected.write_all(&[7; 100_000]).await.unwrap();
    connected.flush().await.unwrap();
    assert!(connected.wire_bytes().unwrap() - before > 100_000);
    let mut got = vec![0; 100_000];
    accepted.read_exact(&mut got).await.unwrap();
    assert_eq!(got, [7; 100_000]);
    // Half-closed: the other direction goes on.
    accepted.shutdown().await.unwrap();
    assert_eq!(connected.read(&mut got).await.unwrap(), 0);
    connected.write_all(b"still").await.unwrap();
    connected.shutdown().await.unwrap();
    let mut rest = Vec::new();
    accepted.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"still");
}

#[tokio::test]
async fn whoever_is_refused_learns_why_before_anything_is_sent() {
    let (place, other) = (Place::new(), Place::new());
    let good = || place.issue("a", &["localhost"], 2999);
    let server = Server::load(&place.server(good(), ClientAuth::Required)).unwrap();
    for (client, host, expected) in [
        (place.client(None), "localhost", "it asks for a certificate of ours"),
        (
            place.client(Some(other.issue("b", &["sender.test"], 2999))),
            "localhost",
            "it does not trust the authority of our certificate",
        ),
        (other.client(None), "localhost", "its certificate is signed by nobody that ca_file names"),
        (place.client(None), "other.test", "its certificate is not for other.test but for localhost"),
        (place.client(None), "127.0.0.1", "its certificate is not for 127.0.0.1 but for localhost"),
    ] {
        let (accepted, connected) = meet(&server, &Client::load(&client).unwrap(), host).await;
        assert!(accepted.is_err());
        let why = connected.unwrap_err();
        assert!(why.contains(expected), "{why}");
    }
    let expired = Server::load(&place.server(place.issue("c", &["localhost"], 2021), ClientAuth::Off)).unwrap();
    let (_, connected) = meet(&expired, &Client::load(&place.client(None)).unwrap(), "localhost").await;
    assert_eq!(connected.unwrap_err(), "its certificate expired on 2021-12-31 00:00 UTC");
}

#[tokio::test]
async fn a_client_that_need_not_show_a_certificate_may() {
    let place = Place::new();
    let server = Server::load(&place.server(place.issue("a", &["127.0.0.1"], 2999), ClientAuth::Optional)).unwrap();
    for (identity, name) in [(None, None), (Some(place.issue("b", &["b.test"], 2999)), Some("b.test".to_owned()))] {
        let (accepted, connected) = meet(&server, &Client::new(&place.client(identity)), "127.0.0.1").await;
        connected.unwrap();
        assert_eq!(accepted.unwrap().peer_name(), name);
    }
}

#[test]
fn files_are_read_again_when_they_change_and_bad_ones_change_nothing() {
    let place = Place::new();
    let file = place.write("file", "one");
    let followed = Followed::new(vec![file.clone()], Duration::from_secs(2));
    let begun = Instant::now();
    let reads = std::cell::Cell::new(0);
    let get = |seconds| {
        followed.get(begun + Duration::from_secs(seconds), &"file", || {
            reads.set(reads.get() + 1);
            match fs::read_to_string(&file).unwrap() {
                text if text == "bad" => Err(TlsError::new("ca_file", &file, Problem::NoCertificate)),
                text => Ok(text),
            }
        })
    };
    assert_eq!(get(0).unwrap(), "one");
    place.write("file", "three");
    assert_eq!(get(1).unwrap(), "one", "not looked at within two seconds");
    assert_eq!(get(2).unwrap(), "three");
    assert_eq!((get(10).unwrap().as_str(), reads.get()), ("three", 2), "unchanged files are not read");
    place.write("file", "bad");
    assert_eq!(get(20).unwrap(), "three");
    assert_eq!((get(30).unwrap().as_str(), reads.get()), ("three", 3), "bad files are read once");
    place.write("file", "seven");
    assert_eq!(get(40).unwrap(), "seven");

    let never = Followed::<String>::new(vec![file.clone()], Duration::from_secs(2));
    assert!(never.get(begun, &"file", || Err(TlsError::new("ca_file", &file, Problem::NoCertificate))).is_err());
    assert_eq!(never.get(begun, &"file", || Ok("now".to_owned())).unwrap(), "now");
}

#[test]
fn every_file_that_cannot_be_used_is_named_with_its_reason() {
    let place = Place::new();
    let good = place.issue("good", &["a.test"], 2999);
    let other = place.issue("other", &["b.test"], 2999);
    let exposed = place.write("exposed", &fs::read_to_string(&good.key_file).unwrap());
    fs::set_permissions(&exposed, PermissionsExt::from_mode(0o644)).unwrap();
    let key_text = fs::read_to_string(&good.key_file).unwrap();
    let locked = place.write("locked", &key_text.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));
    let cut = place.write("cut", &fs::read_to_string(&good.cert_file).unwrap()[..200]);
    let garbled = place.write("garbled", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let missing = place.path("missing");
    let load = |cert_file: &Path, key_file: &Path, ca_file: Option<&Path>| {
        let identity = TlsIdentity { cert_file: cert_file.to_owned(), key_file: key_file.to_owned() };
        let client_auth = if ca_file.is_some() { ClientAuth::Required } else { ClientAuth::Off };
        Server::load(&TlsServer { identity, ca_file: ca_file.map(Path::to_owned), client_auth })
    };
    for (cert_file, key_file, ca_file, key, what) in [
        (&missing, &good.key_file, None, "cert_file", "cannot read it"),
        (&good.cert_file, &missing, None, "key_file", "cannot read it"),
        (&good.key_file, &good.key_file, None, "cert_file", "there is no certificate in it"),
        (&good.cert_file, &good.cert_file, None, "key_file", "there is no private key in it"),
        (&good.cert_file, &other.key_file, None, "key_file", "is not the key of the certificate in"),
        (&good.cert_file, &exposed, None, "key_file", "others may read this private key (mode 0644)"),
        (&good.cert_file, &locked, None, "key_file", "the private key is encrypted"),
        (&cut, &good.key_file, None, "cert_file", "is no PEM"),
        (&garbled, &good.key_file, None, "cert_file", "cannot be used"),
        (&good.cert_file, &good.key_file, Some(&missing), "ca_file", "cannot read it"),
        (&good.cert_file, &good.key_file, Some(&good.key_file), "ca_file", "there is no certificate in it"),
    ] {
        let error = load(cert_file, key_file, ca_file.map(PathBuf::as_path)).unwrap_err();
        assert!(error.key == key && error.to_string().contains(what), "{what}: {error}");
        assert!(!error.fix().is_empty());
    }
    assert!(load(&good.cert_file, &good.key_file, Some(&place.path("ca"))).is_ok());
}

#[test]
fn certificates_out_of_their_time_or_for_nobody_are_pointed_at() {
    let place = Place::new();
    let (old, nameless) = (place.issue("old", &["old.test"], 2021), place.issue("nameless", &[], 2999));
    let text = format!(
        r#"
[[input.syslog]]
name = "old"
listen = "tls://:6514"
tls = {{ cert_file = {:?}, key_file = {:?} }}
[[input.syslog]]
name = "nameless"
listen = "tls://:6515"
tls = {{ cert_file = {:?}, key_file = {:?} }}
[[output.syslog]]
to = "tls://siem.test"
tls = {{ ca_file = {:?} }}
"#,
        old.cert_file, old.key_file, nameless.cert_file, nameless.key_file, old.cert_file
    );
    let loaded = config::parse(&text, "t.toml").unwrap();
    let at = |year: i32| SystemTime::from(rcgen::date_time_ymd(year, 12, 25));
    let found = |year| {
        let found = check(&loaded, at(year), Severity::Error).into_iter();
        let mut shown: Vec<String> = found
            .map(|one| format!("{:?} {}: {}", one.severity, one.place.map_or(0, |place| place.line), one.message))
            .collect();
        shown.sort();
        shown.iter().map(|line| line.replace(&place.directory.path().display().to_string(), "")).collect::<Vec<_>>()
    };
    let always = [
        "Error 12: /old.crt: no certificate in it is for siem.test, and none is an authority".to_owned(),
        "Warning 9: /nameless.crt: names no host, so clients that check names refuse it".to_owned(),
    ];
    assert_eq!(found(2020), always);
    let with = |severity: &str, what: &str| {
        let mut lines = always.to_vec();
        lines.extend([12, 5].map(|line| format!("{severity} {line}: /old.crt: the certificate for old.test {what}")));
        lines.sort();
        lines
    };
    assert_eq!(found(2021), with("Warning", "expires on 2021-12-31 00:00 UTC"));
    assert_eq!(found(2022), with("Error", "expired on 2021-12-31 00:00 UTC"));
}
