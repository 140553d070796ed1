//! The API over TCP: certificates at both ends, and what is said when they are wrong.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;

use grpc_api::operator::administration::Role;
use grpc_api::{RoleMap, TcpApi, TlsFiles};
use insta::assert_snapshot;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

use crate::fixture::snapshot;
use crate::server::{Server, program};

/// An authority and the certificates it made, in files of its own folder.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

fn params(name: &str, last_year: i32) -> CertificateParams {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(last_year, 12, 31);
    params
}

impl Authority {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = params("authority", 2099);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        Self { folder, issuer }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files of a new certificate for `name`, and of this authority.
    fn issue(&self, name: &str, last_year: i32) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let certificate = params(name, last_year)
            .signed_by(&key, &self.issuer)
            .unwrap();
        let files = TlsFiles {
            certificate: self.file(&format!("{name}.pem")),
            key: self.file(&format!("{name}.key")),
            ca: self.file("ca.pem"),
        };
        fs::write(&files.certificate, certificate.pem()).unwrap();
        write_secret(&files.key, &key.serialize_pem());
        files
    }
}

fn write_secret(file: &PathBuf, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A sidecar that `127.0.0.1` is the name of, with a viewer and an admin.
fn serve(authority: &Authority) -> (Server, SocketAddr) {
    let files = authority.issue("127.0.0.1", 2099);
    let tcp = TcpApi::bind(&["127.0.0.1:0".parse().unwrap()], &files).unwrap();
    let address = tcp.addresses()[0];
    let names = BTreeMap::from([
        ("ann.example".to_owned(), Role::Viewer),
        ("bob.example".to_owned(), Role::Admin),
    ]);
    let roles = RoleMap {
        names,
        ..RoleMap::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder, Some(snapshot()), Some(tcp), roles);
    (server, address)
}

fn aoctl(address: &str, files: &TlsFiles, arguments: &[&str]) -> Command {
    let mut command = program();
    command.args(["--address", address]);
    command.arg("--ca").arg(&files.ca);
    command.arg("--cert").arg(&files.certificate);
    command.arg("--key").arg(&files.key);
    command.args(arguments);
    command
}

/// Exit code, and what is said with port and folders replaced.
fn failure(
    mut command: Command,
    address: SocketAddr,
    authorities: &[&Authority],
) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty());
    let mut text = String::from_utf8(output.stderr).unwrap();
    text = text.replace(&address.port().to_string(), "PORT");
    for authority in authorities {
        text = text.replace(authority.folder.path().to_str().unwrap(), "FOLDER");
    }
    (output.status.code(), text)
}

#[test]
fn roles_are_by_the_names_in_certificates() {
    let authority = Authority::new("ours");
    let (server, address) = serve(&authority);
    let target = address.to_string();
    let (ann, bob) = (
        authority.issue("ann.example", 2099),
        authority.issue("bob.example", 2099),
    );
    let role = |files| {
        let output = aoctl(&target, files, &["status", "--json"])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        status["role"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        (role(&ann), role(&bob)),
        ("viewer".to_owned(), "admin".to_owned())
    );

    let delete = ["peers", "delete", "as64502"];
    let (code, text) = failure(aoctl(&target, &ann, &delete), address, &[]);
    assert_eq!(code, Some(1));
    assert_snapshot!(text, @"aoctl: ao-sidecar refused: this takes the role admin, and the caller has viewer");
    assert!(server.administration.asked.lock().unwrap().is_empty());
    assert!(
        aoctl(&target, &bob, &delete)
            .output()
            .unwrap()
            .status
            .success()
    );
    let asked = server.administration.last();
    assert!(asked.starts_with("admin: DeletePeer"), "{asked}");

    let eve = authority.issue("eve.example", 2099);
    let (code, text) = failure(aoctl(&target, &eve, &["status"]), address, &[]);
    assert_eq!(code, Some(1));
    assert_snapshot!(text, @"aoctl: ao-sidecar refused: the name in the certificate (eve.example) has no role in [api.tcp]");
}

#[test]
fn the_environment_says_what_the_options_leave_out() {
    let authority = Authority::new("ours");
    let (server, address) = serve(&authority);
    let ann = authority.issue("ann.example", 2099);
    let mut command = program();
    command
        .env("AOCTL_ADDRESS", format!("localhost:{}", address.port()))
        .env("AOCTL_SERVER_NAME", "127.0.0.1")
        .env("AOCTL_CA", &ann.ca)
        .env("AOCTL_CERT", &ann.certificate)
        .env("AOCTL_KEY", &ann.key);
    let peers = command.arg("peers").output().unwrap();
    assert!(
        peers.status.success(),
        "{}",
        String::from_utf8_lossy(&peers.stderr)
    );
    // A socket on the command line is meant.
    let mut command = program();
    command.env("AOCTL_ADDRESS", "nobody.invalid:1");
    let local = command
        .arg("--socket")
        .arg(server.socket())
        .arg("peers")
        .output()
        .unwrap();
    assert_eq!(peers.stdout, local.stdout);
}

#[test]
fn what_tls_lacks_is_wrong_usage() {
    let usage = |arguments: &[&str]| {
        let output = program().args(arguments).arg("status").output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert_snapshot!(usage(&["--address", "192.0.2.1:7180"]), @"aoctl: over TCP, both ends show certificates: --ca FILE is missing, and so is AOCTL_CA in the environment");
    assert_snapshot!(usage(&["--address", "192.0.2.1:7180", "--ca", "a", "--cert", "b"]), @"aoctl: over TCP, both ends show certificates: --key FILE is missing, and so is AOCTL_KEY in the environment");
    assert_snapshot!(usage(&["--address", "192.0.2.1:7180", "--socket", "x"]), @r"
error: the argument '--address <HOST:PORT>' cannot be used with '--socket <FILE>'

Usage: aoctl --address <HOST:PORT> <COMMAND>

For more information, try '--help'.
");
}

#[test]
fn what_is_wrong_with_certificates_is_said_in_words() {
    let (authority, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let (_server, address) = serve(&authority);
    let target = address.to_string();
    let ann = authority.issue("ann.example", 2099);
    let all = [&authority, &foreign];
    let said =
        |target: &str, files: &TlsFiles| failure(aoctl(target, files, &["status"]), address, &all);

    let stranger = TlsFiles {
        ca: authority.file("ca.pem"),
        ..foreign.issue("ann.example", 2099)
    };
    let (code, text) = said(&target, &stranger);
    assert_eq!(code, Some(3));
    assert_snapshot!(text, @"aoctl: cannot reach ao-sidecar on 127.0.0.1:PORT: the sidecar does not know the authority of our certificate");
    let (code, text) = said(&target, &authority.issue("old.example", 2001));
    assert_eq!(code, Some(3));
    assert_snapshot!(text, @"aoctl: cannot reach ao-sidecar on 127.0.0.1:PORT: the sidecar says that our certificate has expired");
    let deceived = TlsFiles {
        ca: foreign.file("ca.pem"),
        ..ann.clone()
    };
    let (code, text) = said(&target, &deceived);
    assert_eq!(code, Some(3));
    assert_snapshot!(text, @"aoctl: cannot reach ao-sidecar on 127.0.0.1:PORT: the sidecar's end of TLS is refused: the certificate is not of the configured authority");
    let (code, text) = said(&format!("localhost:{}", address.port()), &ann);
    assert_eq!(code, Some(3));
    assert_snapshot!(text, @r#"aoctl: cannot reach ao-sidecar on localhost:PORT: the sidecar's end of TLS is refused: the certificate is refused: certificate not valid for name "localhost"; certificate is only valid for IpAddress(127.0.0.1)"#);
    let absent = TlsFiles {
        key: authority.file("absent.key"),
        ..ann.clone()
    };
    let (code, text) = said(&target, &absent);
    assert_eq!(code, Some(1));
    assert_snapshot!(text, @"aoctl: FOLDER/absent.key cannot be read: No such file or directory (os error 2)");
    let (code, text) = said("192.0.2.1", &ann);
    assert_eq!(code, Some(1));
    assert_snapshot!(text, @r#"aoctl: "192.0.2.1" is not HOST:PORT, such as 10.0.0.2:7179 or [2001:db8::1]:7179"#);
}

#[test]
fn an_address_where_nobody_listens_is_exit_code_3() {
    let authority = Authority::new("ours");
    let ann = authority.issue("ann.example", 2099);
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let command = aoctl(&address.to_string(), &ann, &["status"]);
    let (code, text) = failure(command, address, &[]);
    assert_eq!(code, Some(3));
    assert_snapshot!(text, @"aoctl: cannot reach ao-sidecar on 127.0.0.1:PORT: Connection refused (os error 111); is it running with [api.tcp], and is --address right?");
    // Only what is on this machine can be looked at without the sidecar.
    let command = aoctl(&address.to_string(), &ann, &["doctor"]);
    assert_eq!(failure(command, address, &[]), (code, text));
}
