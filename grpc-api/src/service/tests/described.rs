//! Health and reflection, as other tools ask for them.

use prost::Message;
use prost_types::FileDescriptorProto;
use tokio_stream::StreamExt;
use tonic::{Code, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::support::{PATIENCE, Served, channel};
use crate::service::methods::METHODS;

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.into(),
    }
}

async fn next(stream: &mut Streaming<HealthCheckResponse>) -> Result<ServingStatus, Code> {
    let told = tokio::time::timeout(PATIENCE, stream.message())
        .await
        .unwrap();
    let told = told.map_err(|status| status.code())?;
    Ok(told.unwrap().status())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_what_the_daemon_says() {
    let served = Served::start();
    let mut client = HealthClient::new(served.user("viewer").await);
    for service in ["", "aosidecar.v1.OperatorService"] {
        for (serving, expected) in [
            (false, ServingStatus::NotServing),
            (true, ServingStatus::Serving),
        ] {
            served.health.set(serving);
            let told = client.check(about(service)).await.unwrap().into_inner();
            assert_eq!(told.status(), expected, "{service:?}");
        }
    }
    let unknown = client.check(about("other")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut watched = client.watch(about("")).await.unwrap().into_inner();
    assert_eq!(next(&mut watched).await, Ok(ServingStatus::Serving));
    for (serving, expected) in [
        (false, ServingStatus::NotServing),
        (true, ServingStatus::Serving),
    ] {
        served.health.set(serving);
        assert_eq!(next(&mut watched).await, Ok(expected));
    }
    let mut unknown = client.watch(about("other")).await.unwrap().into_inner();
    assert_eq!(next(&mut unknown).await, Ok(ServingStatus::ServiceUnknown));
    served.stop().await;
    assert_eq!(next(&mut watched).await, Err(Code::Unavailable));
    assert_eq!(next(&mut unknown).await, Err(Code::Unavailable));
}

/// Asks the reflection service one thing.
async fn reflect(served: &Served, question: MessageRequest) -> MessageResponse {
    let mut client = ServerReflectionClient::new(channel(&served.target("viewer")).await);
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    };
    let answers = client
        .server_reflection_info(tokio_stream::once(question))
        .await;
    let answer = answers.unwrap().into_inner().next().await.unwrap().unwrap();
    answer.message_response.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_describe_themselves() {
    let served = Served::start();
    let listed = reflect(&served, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else {
        panic!("{listed:?}");
    };
    let mut services: Vec<_> = listed
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    services.sort_unstable();
    let expected = [
        "aosidecar.v1.OperatorService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ];
    assert_eq!(services, expected);
    for service in expected {
        let symbol = MessageRequest::FileContainingSymbol(service.to_owned());
        let MessageResponse::FileDescriptorResponse(files) = reflect(&served, symbol).await else {
            panic!("{service} is not described");
        };
        let file = FileDescriptorProto::decode(&*files.file_descriptor_proto[0]).unwrap();
        let name = service.rsplit('.').next().unwrap();
        let described = file
            .service
            .iter()
            .find(|service| service.name() == name)
            .unwrap();
        if name == "OperatorService" {
            assert_eq!(described.method.len(), METHODS.len());
            // Its comments are there for people who ask with a tool.
            assert!(
                file.source_code_info
                    .is_some_and(|info| !info.location.is_empty())
            );
        }
    }
    served.stop().await;
}
