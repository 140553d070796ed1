use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::thread;

use rcgen::{BasicConstraints, IsCa, Issuer};
use tempfile::TempDir;

use super::*;

fn made() -> (TempDir, Identity) {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::load_or_create(folder.path()).unwrap();
    (folder, identity)
}

fn message(result: Result<Identity, IdentityError>) -> String {
    let text = result.unwrap_err().to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn an_identity_is_made_once() {
    let (folder, first) = made();
    let again = Identity::load_or_create(folder.path()).unwrap();
    assert_eq!(first.fingerprint(), again.fingerprint());
    assert_eq!(first.chain(), again.chain());
    assert_eq!(first.key(), again.key());
    assert_eq!(
        spki_fingerprint(&first.chain()[0]),
        Some(first.fingerprint())
    );
    let other = tempfile::tempdir().unwrap();
    let other = Identity::load_or_create(other.path()).unwrap();
    assert_ne!(first.fingerprint(), other.fingerprint());
}

#[test]
fn its_files_are_private_and_complete() {
    let (folder, _) = made();
    let names = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, [CERTIFICATE_FILE, KEY_FILE, "making.lock"]);
    for name in names {
        let mode = fs::metadata(folder.path().join(name)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
}

#[test]
fn its_certificate_is_valid_for_a_hundred_years_at_any_clock() {
    let (_folder, identity) = made();
    let years = |years: u64| Duration::from_secs(years * 31_556_952);
    assert!(identity.not_after() > SystemTime::now() + years(100));
    let (_, certificate) = X509Certificate::from_der(&identity.chain()[0]).unwrap();
    assert_eq!(certificate.validity().not_before.timestamp(), 0);
    assert_eq!(certificate.subject(), certificate.issuer());
}

#[test]
fn processes_that_start_at_once_have_one_identity() {
    let folder = tempfile::tempdir().unwrap();
    let load = || {
        Identity::load_or_create(folder.path())
            .unwrap()
            .fingerprint()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
        let expected = load();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), expected);
        }
    });
}

/// As a crash between the two files, or a careless hand, leaves it.
#[test]
fn a_missing_certificate_is_made_again_with_the_same_fingerprint() {
    let (folder, identity) = made();
    fs::remove_file(folder.path().join(CERTIFICATE_FILE)).unwrap();
    let again = Identity::load_or_create(folder.path()).unwrap();
    assert_eq!(again.fingerprint(), identity.fingerprint());
}

#[test]
fn a_missing_key_is_not_replaced() {
    let (folder, _) = made();
    fs::remove_file(folder.path().join(KEY_FILE)).unwrap();
    let text = message(Identity::load_or_create(folder.path()));
    assert!(text.contains("identity.key is missing beside"), "{text}");
    assert!(text.contains("move both files away"), "{text}");
    assert!(!folder.path().join(KEY_FILE).exists());
}

#[test]
fn files_that_do_not_fit_are_refused_and_stay() {
    let (folder, _) = made();
    let (other, _) = made();
    let key = folder.path().join(KEY_FILE);
    fs::copy(other.path().join(KEY_FILE), &key).unwrap();
    let text = message(Identity::load_or_create(folder.path()));
    assert!(text.contains("identity.key is not the key of"), "{text}");
    for wrong in [
        "",
        "text",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ] {
        fs::write(&key, wrong).unwrap();
        let text = message(Identity::load_or_create(folder.path()));
        assert!(text.contains("identity.key holds no private key"), "{text}");
        assert_eq!(fs::read_to_string(&key).unwrap(), wrong);
    }
    let certificate = other.path().join(CERTIFICATE_FILE);
    for wrong in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        fs::write(&certificate, wrong).unwrap();
        let text = message(Identity::load_or_create(other.path()));
        assert!(text.contains("identity.crt holds no certificate"), "{text}");
    }
}

#[test]
fn exposed_files_are_refused() {
    for name in [KEY_FILE, CERTIFICATE_FILE] {
        let (folder, _) = made();
        fs::set_permissions(folder.path().join(name), Permissions::from_mode(0o644)).unwrap();
        let text = message(Identity::load_or_create(folder.path()));
        assert!(text.contains(name), "{text}");
        assert!(
            text.contains("readable by others (mode 0644): it must be"),
            "{text}"
        );
    }
}

#[test]
fn a_private_key_does_not_show() {
    let (folder, identity) = made();
    let shown = format!("{identity:?}");
    assert_eq!(shown, format!("Identity({})", identity.fingerprint()));
    let mut text = fs::read_to_string(folder.path().join(KEY_FILE)).unwrap();
    text.insert(40, '!');
    fs::write(folder.path().join(KEY_FILE), text).unwrap();
    assert!(message(Identity::load_or_create(folder.path())).len() < 400);
}

/// Chains of two, of key types other than the own one's.
#[test]
fn an_operators_own_certificates_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key_file) = (folder.path().join("crt"), folder.path().join("key"));
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, &authority_key);
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut own = CertificateParams::new(["router-1.example".to_owned()]).unwrap();
        own.not_after = date_time_ymd(2027, 5, 17);
        let own = own.signed_by(&key, &issuer).unwrap();
        fs::write(&certificate, own.pem() + &authority_certificate.pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
        let identity = Identity::load(&certificate, &key_file).unwrap();
        assert_eq!(
            identity.chain(),
            [own.der().to_vec(), authority_certificate.der().to_vec()]
        );
        // 2027-05-17 00:00 UTC
        let expiry = SystemTime::UNIX_EPOCH + Duration::from_secs(1_810_512_000);
        assert_eq!(identity.not_after(), expiry);
        let expected = Fingerprint::of_public_key(&key.subject_public_key_info());
        assert_eq!(identity.fingerprint(), expected);
    }
    fs::set_permissions(&key_file, Permissions::from_mode(0o640)).unwrap();
    let text = message(Identity::load(&certificate, &key_file));
    assert!(text.contains("key is readable by others"), "{text}");
    fs::remove_file(&key_file).unwrap();
    let text = message(Identity::load(&certificate, &key_file));
    assert!(text.contains("key is missing"), "{text}");
}
