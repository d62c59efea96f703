//! Devices: enrolling them, finding them, changing them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use ionet_api::rest::{DeviceFilter, DeviceView, EnrolRequest};
use ionet_domain::account::Scope;
use ionet_domain::command::CommandBody;
use ionet_domain::device::{DeviceChange, DeviceStage};
use ionet_domain::{Address, DeviceId, Refusal};

use super::Api;
use super::caller::{Anybody, Caller};
use super::error::Error;
use super::extract::{Body, Named, Params};
use super::history::{in_span, page_size};
use super::views::{self, DeviceSieve};

const OWNER_SCOPES: [Scope; 2] = [Scope::Read, Scope::Supply];

/// Enrols a device of the caller's account.
#[utoipa::path(post, path = "/v1/devices", tag = "devices", request_body = EnrolRequest,
    responses((status = 200, body = DeviceView)), security(("token" = [])))]
pub(super) async fn enrol(
    State(api): State<Api>,
    caller: Caller,
    Body(EnrolRequest { enrolment, machine_name }): Body<EnrolRequest>,
) -> Result<Json<DeviceView>, Error> {
    let device = enrolment.device;
    api.ask(caller, None, CommandBody::Enrol { enrolment, machine_name }).await?;
    api.device(device, Some(caller.account))
}

/// Devices that meet the filter. Only an owner sees a machine's name and how it is right now.
#[utoipa::path(get, path = "/v1/devices", tag = "devices", params(DeviceFilter),
    responses((status = 200, body = Vec<DeviceView>)), security((), ("token" = [])))]
pub(super) async fn devices(
    State(api): State<Api>,
    caller: Anybody,
    Params(filter): Params<DeviceFilter>,
) -> Result<Json<Vec<DeviceView>>, Error> {
    if filter.mine {
        caller.0.ok_or_else(Caller::nobody)?.needs(&api, &OWNER_SCOPES, "list its devices")?;
    }
    let reader = caller.reader(&api, &OWNER_SCOPES);
    let (span, limit) = ((filter.after, filter.before, filter.newest), page_size(filter.limit)?);
    let sieve = DeviceSieve::new(filter, reader)?;
    let found = api.handle.read(|view| {
        let passing = in_span(view.state.devices.as_map(), span).filter(|(_, device)| sieve.passes(device));
        passing
            .take(limit)
            .filter_map(|(id, _)| views::device(&view.state, &view.fleet, *id, reader).ok())
            .collect()
    });
    Ok(Json(found))
}

/// One device.
#[utoipa::path(get, path = "/v1/devices/{device}", tag = "devices", params(("device" = String, Path, description = "Its id")),
    responses((status = 200, body = DeviceView)), security((), ("token" = [])))]
pub(super) async fn device(
    State(api): State<Api>,
    caller: Anybody,
    Named(device): Named<DeviceId>,
) -> Result<Json<DeviceView>, Error> {
    api.device(device, caller.reader(&api, &OWNER_SCOPES))
}

/// Changes a device's price, tags or rules.
#[utoipa::path(patch, path = "/v1/devices/{device}", tag = "devices", params(("device" = String, Path, description = "Its id")),
    request_body = Object, responses((status = 200, body = DeviceView)), security(("token" = [])))]
pub(super) async fn change_device(
    State(api): State<Api>,
    caller: Caller,
    Named(device): Named<DeviceId>,
    Body(change): Body<DeviceChange>,
) -> Result<Json<DeviceView>, Error> {
    api.ask(caller, None, CommandBody::ChangeDevice { device, change }).await?;
    api.device(device, Some(caller.account))
}

/// Has a device measured again.
#[utoipa::path(post, path = "/v1/devices/{device}/check", tag = "devices", params(("device" = String, Path, description = "Its id")),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn check_device(
    State(api): State<Api>,
    caller: Caller,
    Named(device): Named<DeviceId>,
) -> Result<StatusCode, Error> {
    const WHAT: &str = "check the device";
    caller.needs(&api, &[Scope::Supply], WHAT)?;
    let checkable = api.handle.read(|view| {
        let found = view.state.device(device)?;
        if found.enrolment.owner != caller.account {
            let (who, takes) = (caller.account.to_string(), "the device's owner".into());
            return Err(Refusal::NotAllowed { who, what: WHAT.into(), takes });
        }
        if found.stage == DeviceStage::Checking || found.leases > 0 {
            let stage = format!("{} with {} leases", found.stage, found.leases);
            return Err(Refusal::WrongDeviceStage { device, stage, wanted: "check".into() });
        }
        Ok(())
    });
    if let Err(refusal @ Refusal::NotAllowed { .. }) = &checkable {
        api.note_denied(caller, &refusal.to_string());
    }
    checkable?;
    // The rules let only the server begin a check; the owner's right to ask for one was checked above.
    api.handle.recheck(device).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Archives a device that holds no lease.
#[utoipa::path(delete, path = "/v1/devices/{device}", tag = "devices", params(("device" = String, Path, description = "Its id")),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn archive_device(
    State(api): State<Api>,
    caller: Caller,
    Named(device): Named<DeviceId>,
) -> Result<StatusCode, Error> {
    api.ask(caller, None, CommandBody::ArchiveDevice { device }).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Api {
    fn device(&self, device: DeviceId, reader: Option<Address>) -> Result<Json<DeviceView>, Error> {
        let found = self.handle.read(|view| views::device(&view.state, &view.fleet, device, reader));
        Ok(Json(found?))
    }
}
