//! Two ends, their certificates, and what lies between them.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use grpc_api::peer::{
    Authority, CallError, Caller, Endpoint, Handler, Limits, Partner, Partners, PeerIdentity,
    PeerServer, Refused, Trust, exchange,
};
use grpc_api::v1::peer_key_service_client::PeerKeyServiceClient;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keymgr::identity::Fingerprint;
use keymgr::rollover::message::{IdSet, Instance, Message, Offer};
use keymgr::secret::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::http::{Request, Response, Uri};
use tonic_prost::ProstCodec;

/// Longer than any call here takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A certificate with its key.
pub(crate) struct End {
    pub(crate) identity: PeerIdentity,
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

impl End {
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    pub(crate) fn pinned(&self) -> Trust {
        Trust::Pinned(self.fingerprint())
    }

    fn new(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        let (certificate, key) = (certificate.der().to_vec(), key.serialize_der());
        let identity = PeerIdentity::new(vec![certificate.clone()], &key).unwrap();
        Self {
            identity,
            certificate,
            key,
        }
    }
}

/// A self-signed certificate of `name`, valid until the end of `last_year`.
pub(crate) fn self_signed(name: &str, last_year: i32) -> End {
    let key = KeyPair::generate().unwrap();
    let certificate = params(name, last_year).self_signed(&key).unwrap();
    End::new(&certificate, &key)
}

fn params(name: &str, last_year: i32) -> CertificateParams {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(last_year, 12, 31);
    params
}

/// An operator's authority.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: Vec<u8>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = params("authority", 2099);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        let issuer = Issuer::new(params, key);
        Self {
            issuer,
            certificate,
        }
    }

    pub(crate) fn issue(&self, name: &str, last_year: i32) -> End {
        let key = KeyPair::generate().unwrap();
        let mut params = params(name, last_year);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        End::new(&certificate, &key)
    }

    pub(crate) fn trust(&self, name: &str) -> Trust {
        Trust::Authority(Authority::new(std::slice::from_ref(&self.certificate), name).unwrap())
    }
}

/// Keeps what it gets and answers with [`reply`].
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) seen: Mutex<Vec<(Caller, Message)>>,
}

impl Recorder {
    pub(crate) fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Handler for Recorder {
    async fn exchange(&self, caller: Caller, message: Message) -> Result<Message, Refused> {
        self.seen.lock().unwrap().push((caller, message));
        Ok(reply())
    }
}

/// A server that runs until it is stopped or dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.address.into()
    }

    /// Completes when the server has drained.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.task).await.unwrap();
    }
}

pub(crate) fn start<H: Handler>(
    listen: &str,
    own: &End,
    partners: Vec<Partner>,
    limits: Limits,
    handler: &Arc<H>,
) -> Running {
    let partners = Arc::new(Partners::new(partners));
    let listen = [listen.parse().unwrap()];
    let server = PeerServer::bind(&listen, &own.identity, partners, limits).unwrap();
    let address = server.addresses()[0];
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = server.serve(Arc::clone(handler), async {
        let _ = stopped.await;
    });
    Running {
        address,
        stop: Some(stop),
        task: tokio::spawn(serving),
    }
}

pub(crate) fn partner(name: &str, trust: Trust, addresses: &[IpAddr]) -> Partner {
    let addresses = addresses.to_vec();
    Partner {
        name: name.into(),
        trust,
        addresses,
    }
}

/// A server that knows one client, and both their certificates.
pub(crate) struct Pair {
    pub(crate) client: End,
    pub(crate) server: End,
    pub(crate) handler: Arc<Recorder>,
    pub(crate) running: Running,
}

pub(crate) fn pair(limits: Limits) -> Pair {
    let (client, server) = (self_signed("a", 2099), self_signed("b", 2099));
    let handler = Arc::new(Recorder::default());
    let known = vec![partner("a", client.pinned(), &[])];
    let running = start("127.0.0.1:0", &server, known, limits, &handler);
    Pair {
        client,
        server,
        handler,
        running,
    }
}

impl Pair {
    pub(crate) async fn call(&self) -> Result<Message, CallError> {
        let trust = self.server.pinned();
        call(&self.running.endpoint(), &self.client, &trust).await
    }

    /// That the server serves, still.
    pub(crate) async fn assert_serves(&self) {
        assert_eq!(self.call().await.unwrap(), reply());
    }

    pub(crate) async fn client(&self) -> PeerKeyServiceClient<Channel> {
        let tls = tls_connect(self.running.address, Some(&self.client), &GROUPS)
            .await
            .unwrap();
        grpc(tls).await
    }
}

pub(crate) async fn call(at: &Endpoint, own: &End, trust: &Trust) -> Result<Message, CallError> {
    exchange(at, &own.identity, trust, LABEL, &message(), PATIENCE).await
}

/// Of the only peering there is.
pub(crate) const LABEL: &str = "ipv4";

pub(crate) fn message() -> Message {
    Message {
        instance: Instance([1; 16]),
        yours: None,
        generations: Vec::new(),
        offer: Some(Offer {
            number: 1,
            contribution: Secret::new(&[7; 32]),
            algorithms: ao_engine::crypto::Algorithm::ALL.to_vec(),
            free_ids: IdSet([0xff; 32]),
        }),
        answer: None,
        refusal: None,
        overlap: Duration::from_secs(3600),
    }
}

pub(crate) fn reply() -> Message {
    let instance = Instance([2; 16]);
    let yours = Some(Instance([1; 16]));
    Message {
        instance,
        yours,
        offer: None,
        ..message()
    }
}

/// What our own TLS offers, in its order, and one group that it must not accept.
pub(crate) const GROUPS: [&dyn SupportedKxGroup; 3] = [
    aws_lc_rs::kx_group::X25519MLKEM768,
    aws_lc_rs::kx_group::X25519,
    aws_lc_rs::kx_group::SECP256R1,
];

/// A TLS connection that believes anybody; by hand, to do with it what our client does not.
pub(crate) async fn tls_connect(
    address: SocketAddr,
    own: Option<&End>,
    groups: &[&'static dyn SupportedKxGroup],
) -> io::Result<TlsStream<TcpStream>> {
    tls_over(TcpStream::connect(address).await?, own, groups).await
}

/// The same from another address of ours.
pub(crate) async fn tls_from(
    source: Ipv4Addr,
    address: SocketAddr,
    own: &End,
) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    tls_over(socket.connect(address).await?, Some(own), &GROUPS).await
}

async fn tls_over(
    tcp: TcpStream,
    own: Option<&End>,
    groups: &[&'static dyn SupportedKxGroup],
) -> io::Result<TlsStream<TcpStream>> {
    let provider = CryptoProvider {
        kx_groups: groups.to_vec(),
        ..aws_lc_rs::default_provider()
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(end) => {
            let chain = vec![CertificateDer::from(end.certificate.clone())];
            let key = PrivateKeyDer::try_from(end.key.clone()).unwrap();
            let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
            // Whether they belong together is not looked at.
            let key = CertifiedKey::new(chain, key);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("anybody").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

/// A client of the generated kind on `tls`.
pub(crate) async fn grpc(tls: TlsStream<TcpStream>) -> PeerKeyServiceClient<Channel> {
    PeerKeyServiceClient::with_origin(channel(tls).await, origin())
}

fn origin() -> Uri {
    Uri::from_static("https://anybody")
}

async fn channel(tls: TlsStream<TcpStream>) -> Channel {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
        .await
        .unwrap();
    tokio::spawn(connection);
    Channel(sender)
}

/// A client that calls what it likes with what it likes.
pub(crate) struct RawClient(Grpc<Channel>);

impl RawClient {
    pub(crate) async fn new(tls: TlsStream<TcpStream>) -> Self {
        Self(Grpc::with_origin(channel(tls).await, origin()))
    }

    pub(crate) async fn call(
        &mut self,
        path: &'static str,
        message: impl prost::Message + Default + 'static,
    ) -> Result<(), Status> {
        self.0.ready().await.unwrap();
        let (path, codec) = (PathAndQuery::from_static(path), ProstCodec::default());
        let answer: tonic::Response<()> = self
            .0
            .unary(tonic::Request::new(message), path, codec)
            .await?;
        answer.into_inner();
        Ok(())
    }
}

/// What this thread logs until it is dropped.
pub(crate) struct Log {
    written: Written,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    pub(crate) fn begin() -> Self {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        Self { written, _guard }
    }

    pub(crate) fn lines_with(&self, text: &str) -> usize {
        let log = self.to_string();
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// Completes when there is such a line.
    pub(crate) async fn line_with(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.lines_with(text) == 0 {
            assert!(Instant::now() < deadline, "no {text:?} in {self}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.written.0.lock().unwrap()))
    }
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) struct Channel(http2::SendRequest<Body>);

impl GrpcService<Body> for Channel {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::HandshakeNotComplete)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
