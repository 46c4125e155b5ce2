package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/lib/pq"
)

// Finding is something wrong that an operator can mend.
type Finding struct {
	What string // in one line
	Fix  string // what to do
}

// tableGrants names the tables with what the application's roles, or everybody, may do; not information_schema, which
// shows a role only its own grants.
const tableGrants = `SELECT DISTINCT c.relname || ' by ' || coalesce(r.rolname, 'PUBLIC') FROM pg_class c
	JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
	CROSS JOIN LATERAL aclexplode(c.relacl) g LEFT JOIN pg_roles r ON r.oid = g.grantee
	WHERE c.relkind IN ('r', 'p') AND coalesce(r.rolname, 'PUBLIC') IN ('muster_api', 'muster_worker', 'muster_system', 'PUBLIC')`

// catalogChecks are rules of the schema that no migration or administrator may break. Each query names what breaks it.
var catalogChecks = []struct{ rule, query, fix string }{
	{"a table with tenants' rows must have row-level security enabled and forced",
		`SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
		WHERE c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND c.relforcerowsecurity) AND (c.relname IN ('users', 'workspaces', 'stripe_events')
			OR EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname IN ('workspace_id', 'user_id') AND NOT a.attisdropped))`,
		"ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"},
	{"a login role must be neither superuser nor able to bypass row-level security, nor create roles or databases",
		`SELECT rolname FROM pg_roles WHERE rolname IN ('muster_api', 'muster_worker', 'muster_system')
			AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb)`,
		"ALTER ROLE %s NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB"},
	{"a login role must be no member of another role",
		`SELECT r.rolname || ' of ' || g.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member JOIN pg_roles g ON g.oid = m.roleid
		WHERE r.rolname IN ('muster_api', 'muster_worker', 'muster_system')`,
		"REVOKE the membership: %s"},
	{"a login role must exist",
		`SELECT name FROM unnest(ARRAY['muster_api', 'muster_worker', 'muster_system']) AS v (name) WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = name)`,
		"run muster migrate (%s)"},
	{"a login role must own no table",
		`SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tableowner IN ('muster_api', 'muster_worker', 'muster_system')`,
		"ALTER TABLE %s OWNER TO the migrating role"},
	{"no login role may truncate, trigger or reference a table",
		tableGrants + ` AND g.privilege_type IN ('TRUNCATE', 'TRIGGER', 'REFERENCES')`,
		"REVOKE it: %s"},
	{"audit_log must chain each entry (its trigger audit_chain)",
		`SELECT 'audit_log' WHERE NOT EXISTS (SELECT 1 FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
			WHERE c.relname = 'audit_log' AND t.tgname = 'audit_chain' AND p.proname = 'audit_chain' AND t.tgenabled IN ('O', 'A'))`,
		"ALTER TABLE %s ENABLE TRIGGER audit_chain, then muster audit verify --all"},
	{"audit_log and metering_rows must be append-only for every login role",
		tableGrants + ` AND c.relname IN ('audit_log', 'audit_nights', 'metering_rows') AND g.privilege_type IN ('UPDATE', 'DELETE')`,
		"REVOKE UPDATE, DELETE: %s"},
	{"a view must be a security invoker, or it shows every workspace",
		`SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
		WHERE c.relkind = 'm' OR (c.relkind = 'v' AND NOT coalesce('security_invoker=true' = ANY (c.reloptions) OR 'security_invoker=on' = ANY (c.reloptions), false))`,
		"ALTER VIEW %s SET (security_invoker = on); drop materialised views"},
	{"no function may run with its owner's rights",
		`SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspname = 'public' WHERE p.prosecdef`,
		"ALTER FUNCTION %s SECURITY INVOKER"},
	{"a unique constraint on a tenant's table must begin with workspace_id, or it tells that another's value exists",
		`SELECT c.relname || '.' || i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'workspace_id'
		WHERE x.indisunique AND x.indkey[0] <> a.attnum`,
		"make the constraint begin with workspace_id: %s"},
}

// AuditCatalog checks the rules that keep workspaces apart and returns what breaks them.
func (s *System) AuditCatalog(ctx context.Context) ([]Finding, error) {
	var findings []Finding
	for _, check := range catalogChecks {
		var broken []string
		if err := s.db.SelectContext(ctx, &broken, check.query); err != nil {
			return nil, fmt.Errorf("check that %s: %w", check.rule, err)
		}
		for _, name := range broken {
			findings = append(findings, Finding{What: name + ": " + check.rule, Fix: fmt.Sprintf(check.fix, name)})
		}
	}
	for _, role := range []string{RoleAPI, RoleWorker, RoleSystem} {
		set := settingsOf(role)
		var ok bool
		if err := s.db.GetContext(ctx, &ok, `SELECT coalesce((SELECT rolconfig @> $2 FROM pg_roles WHERE rolname = $1), false)`, role, pq.Array(set)); err != nil {
			return nil, fmt.Errorf("check the settings of role %s: %w", role, err)
		}
		if !ok {
			findings = append(findings, Finding{What: role + ": the role's settings are not this version's",
				Fix: "run muster migrate as a role that may alter it, or run" + strings.ReplaceAll(strings.TrimPrefix(alterRole(role, set), ";"), "\n", " ")})
		}
	}
	return findings, nil
}

// SchemaVersion is the version that the database has been migrated to.
func (s *System) SchemaVersion(ctx context.Context) (int64, error) { return schemaVersion(ctx, s.db) }
