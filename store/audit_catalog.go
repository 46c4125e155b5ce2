package store

import (
	"context"
	_ "embed" // privileges.golden
	"fmt"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Finding is something wrong that an operator can mend.
type Finding struct {
	What string // in one line
	Fix  string // what to do
}

// loginRoles in SQL, and everybody.
const (
	loginRoles = `('muster_api', 'muster_worker', 'muster_system')`
	ourSchemas = `n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\_%'`
)

// tableGrants names the tables with what the application's roles, or everybody, may do; not information_schema, which
// shows a role only its own grants.
const tableGrants = `SELECT DISTINCT c.relname || ' by ' || coalesce(r.rolname, 'PUBLIC') FROM pg_class c
	JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
	CROSS JOIN LATERAL aclexplode(c.relacl) g LEFT JOIN pg_roles r ON r.oid = g.grantee
	WHERE c.relkind IN ('r', 'p') AND coalesce(r.rolname, 'PUBLIC') IN ('muster_api', 'muster_worker', 'muster_system', 'PUBLIC')`

// privileges are all grants to the login roles and to everybody, and the heads of all policies, in the words of
// privileges.golden.
const privileges = `WITH granted AS (
	SELECT coalesce(r.rolname, 'PUBLIC') AS grantee, c.relname, NULL::name AS col, lower(g.privilege_type) AS priv
		FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) g LEFT JOIN pg_roles r ON r.oid = g.grantee WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
	UNION ALL
	SELECT coalesce(r.rolname, 'PUBLIC'), c.relname, a.attname, lower(g.privilege_type)
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid CROSS JOIN LATERAL aclexplode(a.attacl) g LEFT JOIN pg_roles r ON r.oid = g.grantee
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT a.attisdropped)
	SELECT 'grant ' || grantee || ' ' || relname || ': ' || string_agg(priv, ' ' ORDER BY priv) FROM granted
		WHERE col IS NULL AND grantee IN ('muster_api', 'muster_worker', 'muster_system', 'PUBLIC') GROUP BY grantee, relname
	UNION ALL
	SELECT 'grant ' || grantee || ' ' || relname || ' columns: ' || priv || ' ' || string_agg(col, ' ' ORDER BY col) FROM granted
		WHERE col IS NOT NULL AND grantee IN ('muster_api', 'muster_worker', 'muster_system', 'PUBLIC') GROUP BY grantee, relname, priv
	UNION ALL
	SELECT 'policy ' || tablename || ' ' || policyname || ' for ' || lower(cmd) || ' to ' || array_to_string(roles, ' ') FROM pg_policies WHERE schemaname = 'public'`

// privilegesOfThisVersion is written by the tests (TestCatalog, -update): reviewed there, held against a database here.
//
//go:embed privileges.golden
var privilegesOfThisVersion string

// catalogChecks are rules of the schema that no migration or administrator may break. Each query names what breaks it.
var catalogChecks = []struct{ rule, query, fix string }{
	{"a table with tenants' rows must have row-level security enabled and forced",
		`SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND ` + ourSchemas + `
		WHERE c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND c.relforcerowsecurity) AND (c.relname IN ('users', 'workspaces', 'stripe_events')
			OR EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname IN ('workspace_id', 'user_id') AND NOT a.attisdropped))`,
		"ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"},
	{"a login role must be neither superuser nor able to bypass row-level security, nor create roles or databases, nor replicate",
		`SELECT rolname FROM pg_roles WHERE rolname IN ('muster_api', 'muster_worker', 'muster_system')
			AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)`,
		"ALTER ROLE %s NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION"},
	{"a login role must be no member of another role",
		`SELECT r.rolname || ' of ' || g.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member JOIN pg_roles g ON g.oid = m.roleid
		WHERE r.rolname IN ('muster_api', 'muster_worker', 'muster_system')`,
		"REVOKE the membership: %s"},
	{"a login role must exist",
		`SELECT name FROM unnest(ARRAY['muster_api', 'muster_worker', 'muster_system']) AS v (name) WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = name)`,
		"run muster migrate (%s)"},
	{"a login role must own nothing",
		`SELECT relname || ' of ' || pg_get_userbyid(relowner) FROM pg_class WHERE pg_get_userbyid(relowner) IN ` + loginRoles + ` AND relpersistence <> 't' AND relkind <> 'i'
		UNION ALL SELECT proname || ' of ' || pg_get_userbyid(proowner) FROM pg_proc WHERE pg_get_userbyid(proowner) IN ` + loginRoles + `
		UNION ALL SELECT nspname || ' of ' || pg_get_userbyid(nspowner) FROM pg_namespace WHERE pg_get_userbyid(nspowner) IN ` + loginRoles + `
		UNION ALL SELECT datname || ' of ' || pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database() AND pg_get_userbyid(datdba) IN ` + loginRoles,
		"give it to the migrating role (ALTER … OWNER TO): %s"},
	{"no login role may create in a schema or make schemas",
		`SELECT n.nspname || ' by ' || r.rolname FROM pg_namespace n JOIN pg_roles r ON r.rolname IN ` + loginRoles + `
		WHERE ` + ourSchemas + ` AND has_schema_privilege(r.oid, n.oid, 'CREATE')
		UNION ALL SELECT datname || ' by ' || r.rolname FROM pg_database JOIN pg_roles r ON r.rolname IN ` + loginRoles + `
		WHERE datname = current_database() AND has_database_privilege(r.oid, datname, 'CREATE')`,
		"REVOKE CREATE from the role and from PUBLIC: %s"},
	{"a policy of the API's role, or of everybody, must ask for something",
		`SELECT p.polname || ' on ' || p.polrelid::regclass FROM pg_policy p
		WHERE p.polpermissive AND (0 = ANY (p.polroles) OR (SELECT oid FROM pg_roles WHERE rolname = 'muster_api') = ANY (p.polroles))
			AND (pg_get_expr(p.polqual, p.polrelid) = 'true' OR pg_get_expr(p.polwithcheck, p.polrelid) = 'true')`,
		"DROP POLICY %s, and run muster migrate if this version has one of that name"},
	{"nothing may be granted in advance on tables that are yet to be made",
		`SELECT DISTINCT coalesce(r.rolname, 'PUBLIC') || ' by ' || pg_get_userbyid(d.defaclrole) FROM pg_default_acl d
		CROSS JOIN LATERAL aclexplode(d.defaclacl) g LEFT JOIN pg_roles r ON r.oid = g.grantee
		WHERE d.defaclobjtype IN ('r', 'S', 'n') AND coalesce(r.rolname, 'PUBLIC') IN ('muster_api', 'muster_worker', 'muster_system', 'PUBLIC')`,
		"ALTER DEFAULT PRIVILEGES … REVOKE: %s"},
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
		`SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND ` + ourSchemas + `
		WHERE NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') AND (c.relkind = 'm' OR c.relkind = 'v' AND NOT coalesce('security_invoker=true' = ANY (c.reloptions) OR 'security_invoker=on' = ANY (c.reloptions), false))`,
		"ALTER VIEW %s SET (security_invoker = on); drop materialised views"},
	{"no function may run with its owner's rights",
		`SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace AND ` + ourSchemas + ` WHERE p.prosecdef
			AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')`,
		"ALTER FUNCTION %s SECURITY INVOKER"},
	{"the line's functions must be granted to login roles alone",
		`SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'line\_%'
			AND (p.proacl IS NULL OR EXISTS (SELECT 1 FROM aclexplode(p.proacl) g WHERE g.grantee = 0))`,
		"REVOKE ALL ON FUNCTION %s FROM PUBLIC"},
	{"a unique constraint on a tenant's table must begin with workspace_id, or it tells that another's value exists",
		`SELECT c.relname || '.' || i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'workspace_id'
		WHERE x.indisunique AND x.indkey[0] <> a.attnum`,
		"make the constraint begin with workspace_id: %s"},
}

// AuditCatalog checks the rules that keep workspaces apart and returns what breaks them.
func (s *System) AuditCatalog(ctx context.Context) ([]Finding, error) {
	findings, err := auditCatalog(ctx, s.db)
	if err != nil {
		return nil, err
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

// auditCatalog checks the rules, and the privileges where the database is at this version's schema.
func auditCatalog(ctx context.Context, db sqlx.QueryerContext) (findings []Finding, err error) {
	for _, check := range catalogChecks {
		var broken []string
		if err := sqlx.SelectContext(ctx, db, &broken, check.query); err != nil {
			return nil, fmt.Errorf("check that %s: %w", check.rule, err)
		}
		for _, name := range broken {
			findings = append(findings, Finding{What: name + ": " + check.rule, Fix: fmt.Sprintf(check.fix, name)})
		}
	}
	var version int64
	if err := sqlx.GetContext(ctx, db, &version, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`); err != nil {
		return nil, fmt.Errorf("read schema version: %w", err)
	}
	if version != LatestVersion() {
		return findings, nil // doctor says so, and other versions have other privileges
	}
	var there, want []string
	if err := sqlx.SelectContext(ctx, db, &there, privileges); err != nil {
		return nil, fmt.Errorf("list privileges: %w", err)
	}
	for line := range strings.Lines(privilegesOfThisVersion) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), " using ") // how an expression is printed differs between servers
		line, _, _ = strings.Cut(line, " check ")
		want = append(want, line)
	}
	for _, line := range there {
		if !slices.Contains(want, line) {
			findings = append(findings, Finding{What: line + ": this version does not say so", Fix: "REVOKE what is too much, or DROP POLICY; then run muster doctor again"})
		}
	}
	for _, line := range want {
		if !slices.Contains(there, line) {
			findings = append(findings, Finding{What: line + ": this version says so, and the database does not", Fix: "GRANT it again, or CREATE POLICY as in the version's migrations"})
		}
	}
	return findings, nil
}

// SchemaVersion is the version that the database has been migrated to.
func (s *System) SchemaVersion(ctx context.Context) (int64, error) { return schemaVersion(ctx, s.db) }
