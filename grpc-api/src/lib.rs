//! grpc-api
