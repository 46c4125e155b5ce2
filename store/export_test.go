package store

// AuditOn is the audit of the catalog on any connection, so that tests can look into a transaction.
var AuditOn = auditCatalog
