//! A node's request for a certificate (PKCS #10, RFC 2986): who it wants to be, and that it has the key.

use crate::Role;
use crate::signer::failed;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKey,
    PublicKeyData, SanType,
};
use volume::{Error, ErrorKind, NodeId, Result};

/// Signed with the key that it is about. Whether its sender is that node is for others to find out.
#[derive(Debug)]
pub struct CertificateRequest {
    pub node: NodeId,
    pub(crate) key: PublicKey,
}

/// SEC 1, 2.3.3: an uncompressed point of P-256.
const P256_POINT_BYTES: usize = 65;

impl CertificateRequest {
    /// A new private key and the request, both PEM.
    pub fn make(node: &NodeId) -> Result<(String, String)> {
        let key = KeyPair::generate().map_err(|error| failed("make a key", &error))?;
        let mut params = CertificateParams::new(Vec::new()).map_err(|error| failed("describe a request", &error))?;
        let uri = Role::Node(node.clone()).uri().try_into().map_err(|error| failed("name the request", &error))?;
        params.subject_alt_names.push(SanType::URI(uri));
        let request = params.serialize_request(&key).map_err(|error| failed("sign a request", &error))?;
        let pem = request.pem().map_err(|error| failed("write a request", &error))?;
        Ok((key.serialize_pem(), pem))
    }

    /// `InvalidArgument` unless it asks for one node's name and nothing else, with a key of P-256 that its sender has.
    pub fn parse(pem: &str) -> Result<Self> {
        let invalid = |why: String| Error::new(ErrorKind::InvalidArgument, why);
        let parsed = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|error| invalid(format!("the request cannot be used: {error}")))?;
        let (params, key) = (parsed.params, parsed.public_key);
        let is_p256 = *key.algorithm() == PKCS_ECDSA_P256_SHA256
            && key.der_bytes().len() == P256_POINT_BYTES
            && key.der_bytes().first() == Some(&4);
        if !is_p256 {
            return Err(invalid("its key is not one of ECDSA P-256".to_owned()));
        }
        if !matches!(params.is_ca, IsCa::NoCa) {
            return Err(invalid("it asks for the certificate of an authority".to_owned()));
        }
        match &params.subject_alt_names[..] {
            [SanType::URI(uri)] => match Role::parse(uri.as_str()) {
                Some(Role::Node(node)) => Ok(Self { node, key }),
                _ => Err(invalid(format!("it asks for the name {:?}, which is no node's", uri.as_str()))),
            },
            [] => Err(invalid("it asks for no name".to_owned())),
            [_] => Err(invalid("the name that it asks for is no URI".to_owned())),
            several => Err(invalid(format!("it asks for {} names; a node has one", several.len()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    fn request(names: &[SanType], key: &KeyPair, is_ca: IsCa) -> Result<CertificateRequest> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names.to_vec();
        params.is_ca = is_ca;
        CertificateRequest::parse(&params.serialize_request(key).unwrap().pem().unwrap())
    }

    #[test]
    fn only_a_node_and_only_one_name() {
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let key = KeyPair::generate().unwrap();
        let own = request(&[uri("hawser://node/n1")], &key, IsCa::NoCa).unwrap();
        assert_eq!(own.node.as_str(), "n1");
        for (names, why) in [
            (vec![], "no name"),
            (vec![uri("hawser://controller")], "no node's"),
            (vec![uri("hawser://supervisor")], "no node's"),
            (vec![uri("hawser://node/")], "no node's"),
            (vec![uri("hawser://node/n1"), uri("hawser://node/n2")], "2 names"),
            (vec![uri("hawser://node/n1"), uri("hawser://controller")], "2 names"),
            (vec![uri("hawser://node/n1"), SanType::DnsName("n1".try_into().unwrap())], "2 names"),
            (vec![SanType::DnsName("n1".try_into().unwrap())], "no URI"),
        ] {
            let error = request(&names, &key, IsCa::NoCa).unwrap_err();
            assert!(error.to_string().contains(why), "{names:?}: {error}");
        }
        let authority = request(&[uri("hawser://node/n1")], &key, IsCa::Ca(BasicConstraints::Unconstrained));
        assert!(authority.unwrap_err().to_string().contains("of an authority"));
        for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let error = request(&[uri("hawser://node/n1")], &key, IsCa::NoCa).unwrap_err();
            assert!(error.to_string().contains("P-256"), "{error}");
        }
    }

    #[test]
    fn a_request_without_the_key_is_refused() {
        let (_, pem) = CertificateRequest::make(&NodeId::parse("n1").unwrap()).unwrap();
        let mut der = pem::parse(&pem).unwrap().into_contents();
        let last = der.len() - 1;
        der[last] ^= 1;
        let forged = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der));
        assert!(CertificateRequest::parse(&forged).is_err());
        assert!(CertificateRequest::parse(&pem).is_ok());
        assert!(CertificateRequest::parse("").is_err());
    }
}
