//! The Identity service: how this node gets its certificate. It is the one service that is reached over a connection with the self-signed
//! certificate, so it believes nothing but the proofs of the join token.

use std::sync::Arc;

use byre_api::join::{TOKEN_BYTES_MIN, certificate_proof_holds, node_proof};
use byre_api::proto::identity_server::Identity;
use byre_api::proto::{
    GetSigningRequestRequest, GetSigningRequestResponse, InstallCertificateRequest, InstallCertificateResponse,
};
use rustls_pki_types::CertificateDer;
use tonic::{Request, Response, Status};

use crate::audit::{Audit, Change};
use crate::gate::Peer;
use crate::tls::{NodeTls, TlsError};

const INSTALL: Change = Change { method: "Identity/InstallCertificate", frees_space: false };

/// The service.
pub(crate) struct IdentityService {
    /// The node's key and certificate; `None` without a configured authority.
    pub tls: Option<Arc<NodeTls>>,
    /// The join token, if one is configured.
    pub join_token: Option<String>,
    /// Where the installation is recorded.
    pub audit: Audit,
}

impl IdentityService {
    fn parts(&self) -> Result<(&NodeTls, &str), Status> {
        let tls = self.tls.as_deref().ok_or_else(|| {
            Status::failed_precondition("no authority is configured on this node: set api.ca_pem in its configuration")
        })?;
        let token = self.join_token.as_deref().filter(|token| token.len() >= TOKEN_BYTES_MIN).ok_or_else(|| {
            Status::failed_precondition(format!(
                "no join token of at least {TOKEN_BYTES_MIN} characters is configured on this node: set api.join_token in its configuration"
            ))
        })?;
        Ok((tls, token))
    }
}

fn refusal(error: &TlsError) -> Status {
    match error {
        TlsError::Chain(_) => Status::invalid_argument(error.to_string()),
        TlsError::File(..) => Status::resource_exhausted(error.to_string()),
        TlsError::Key(..) | TlsError::Request(_) | TlsError::Authority(_) | TlsError::Config(_) => {
            Status::failed_precondition(error.to_string())
        }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_signing_request(
        &self,
        _request: Request<GetSigningRequestRequest>,
    ) -> Result<Response<GetSigningRequestResponse>, Status> {
        let (tls, token) = self.parts()?;
        let csr = tls.signing_request().map_err(|error| refusal(&error))?;
        let proof = node_proof(token, &tls.public_key_info());
        Ok(Response::new(GetSigningRequestResponse { csr_der: csr.into(), proof: proof.into() }))
    }

    async fn install_certificate(
        &self,
        request: Request<InstallCertificateRequest>,
    ) -> Result<Response<InstallCertificateResponse>, Status> {
        let entry = self.audit.asked(&Peer::of(request.extensions())?, INSTALL, "this node")?;
        let install = || {
            let (tls, token) = self.parts()?;
            let InstallCertificateRequest { chain_der, proof } = request.get_ref();
            let leaf = chain_der.first().ok_or_else(|| Status::invalid_argument("the certificate chain is empty"))?;
            if !certificate_proof_holds(token, leaf, proof) {
                return Err(Status::permission_denied("the proof of the join token is wrong: check the token"));
            }
            let chain = chain_der.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
            tls.install(chain).map_err(|error| refusal(&error))
        };
        entry.done(install()).await?;
        Ok(Response::new(InstallCertificateResponse {}))
    }
}
