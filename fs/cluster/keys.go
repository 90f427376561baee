package cluster

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"vdefs/consensus/transport"
)

const (
	// Certificates hold as long as their authority: a node is let in by the membership, its certificate only says who it
	// is. They begin in the past, as clocks differ and are set.
	certLife  = 50 * 365 * 24 * time.Hour
	certSlack = 24 * time.Hour

	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY" // PKCS #8
)

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func serial() (*big.Int, error) { return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) }

// newAuthority makes the certificate and key of a cluster's authority.
func newAuthority(clusterID [16]byte, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	number, err := serial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: fmt.Sprintf("VDE cluster %x", clusterID)},
		NotBefore: now.Add(-certSlack), NotAfter: now.Add(certLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// certify makes the certificate of a node.
func certify(ca *x509.Certificate, caKey *ecdsa.PrivateKey, node uint64, key any, now time.Time) (*x509.Certificate, error) {
	number, err := serial()
	if err != nil {
		return nil, err
	}
	name := transport.NodeName(node)
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: now.Add(-certSlack), NotAfter: ca.NotAfter,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key, caKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newCSR asks for a certificate.
func newCSR(key *ecdsa.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// requestKey takes the public key out of a certificate request, which proves that the sender has the private one. Nothing else in
// the request counts.
func requestKey(der []byte) (*ecdsa.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("its key is not of the curve P-256")
	}
	return key, csr.CheckSignature()
}

// verifyNode checks that cert is one of the authority's for a node; node 0 stands for any node.
func verifyNode(ca, cert *x509.Certificate, node uint64, now time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	o := x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if node != 0 {
		o.DNSName = transport.NodeName(node)
	}
	_, err := cert.Verify(o)
	return err
}

// fingerprint is how a token names an authority.
func fingerprint(ca *x509.Certificate) [32]byte { return sha256.Sum256(ca.Raw) }

func encodeCert(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: c.Raw})
}

func encodeKey(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), err
}

func decodePEM(b []byte, kind string) ([]byte, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != kind || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("it is not one PEM block of type %s", kind)
	}
	return block.Bytes, nil
}

func decodeCert(b []byte) (*x509.Certificate, error) {
	der, err := decodePEM(b, pemCert)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func decodeKey(b []byte) (*ecdsa.PrivateKey, error) {
	der, err := decodePEM(b, pemKey)
	if err != nil {
		return nil, err
	}
	return parseKey(der)
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("it is no key of the curve P-256")
	}
	return key, nil
}

// pair tells whether a key belongs to a certificate.
func pair(c *x509.Certificate, k *ecdsa.PrivateKey) bool {
	return k.PublicKey.Equal(c.PublicKey)
}
