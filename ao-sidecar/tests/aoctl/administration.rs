//! The configuration, as the API sees and changes it.

use std::time::Duration;

use grpc_api::operator::ControlError;
use grpc_api::operator::administration::{
    Administration, Caller, Change, Changed, ConfigReport, Finding, KeyChainReport, Validation,
};
use zeroize::Zeroizing;

pub(crate) struct Fixed;

impl Administration for Fixed {
    async fn key_chains(&self) -> Result<Vec<KeyChainReport>, ControlError> {
        Err(not_yet())
    }

    async fn config(&self) -> Result<ConfigReport, ControlError> {
        Err(not_yet())
    }

    async fn validate(&self, _: Option<Zeroizing<String>>) -> Result<Validation, ControlError> {
        Err(not_yet())
    }

    async fn diff(&self) -> Result<Changed, ControlError> {
        Err(not_yet())
    }

    async fn reload(&self, _: &Caller, _: bool) -> Result<Changed, ControlError> {
        Err(not_yet())
    }

    async fn change(&self, _: &Caller, _: Change) -> Result<Changed, ControlError> {
        Err(not_yet())
    }

    async fn audit(&self, _: &Caller, _: String) -> Result<(), ControlError> {
        Ok(())
    }

    async fn diagnose(&self, _: Option<&str>, _: Duration) -> Result<Vec<Finding>, ControlError> {
        Err(not_yet())
    }
}

fn not_yet() -> ControlError {
    ControlError::Refused("not available yet".into())
}
