package store

import "github.com/google/uuid"

// AuditOn is the audit of the catalog on any connection, so that tests can look into a transaction.
var AuditOn = auditCatalog

// Where is the condition that the filter stands for, for tests that look at plans.
func (f EndedFilter) Where(ws uuid.UUID) (string, []any) { return f.where(ws) }
