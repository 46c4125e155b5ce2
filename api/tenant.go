package api

import (
	"errors"
	"net"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// A workspace may have a slug, and with APP_DOMAIN=example.com its people may sign in at slug.example.com: the host then
// stands in for workspace_id in login and refresh. That is all it does. It gives no authority and takes none: a token or a
// key acts on its own workspace whatever host it is sent to, and an unknown host is answered to a user like a workspace that
// they are no member of.

// reservedSlugs are names that a visitor would take for the service's own, or that mail and browsers look for.
var reservedSlugs = strings.Fields(`abuse account accounts admin administrator api app apps asynqmon assets auth autoconfig autodiscover
	billing blog cdn console dashboard demo dev dns docs email events example ftp git health help hostmaster imap internal invoice invoices isatap
	localhost login logout mail mailer metrics monitor muster mx noc oauth ops payment payments pop pop3 postmaster preview prod production
	register root sandbox security shop signin signup sip smtp ssl sso staging static status stripe support system team test testing
	webhook webhooks webmaster wpad www`)

// slugFault says what is wrong with a slug, "" when nothing is.
func slugFault(slug string) string {
	switch {
	case len(slug) < 3 || !dnsLabel(slug):
		return "must be 3 to 63 lower-case letters, digits and dashes, without a dash at an end"
	case len(slug) > 3 && slug[2:4] == "--": // xn-- and its like mean something else
		return "must not have dashes as its third and fourth character"
	case slices.Contains(reservedSlugs, slug):
		return "is reserved"
	}
	return ""
}

// CheckDomain refuses what no host can end in: a lower-case DNS name without a port.
func CheckDomain(domain string) error {
	for label := range strings.SplitSeq(domain, ".") {
		if !dnsLabel(label) || len(domain) > 190 {
			return errors.New("a domain is a lower-case DNS name such as example.com")
		}
	}
	return nil
}

// tenantOf is the label before the domain in a host, "" when there is none, or one that is the service's own.
func tenantOf(domain, host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	label, found := strings.CutSuffix(strings.TrimSuffix(strings.ToLower(host), "."), "."+domain)
	if domain == "" || !found || !dnsLabel(label) || slices.Contains(reservedSlugs, label) {
		return ""
	}
	return label
}

// wanted is where somebody signs in: what the body says, else the host.
func (s *Server) wanted(q *request, workspaceID string) (store.Wanted, error) {
	if workspaceID == "" {
		return store.Wanted{Slug: tenantOf(s.AppDomain, q.gin.Request.Host)}, nil
	}
	ws, ok := store.ParseID(store.WorkspacePrefix, workspaceID)
	if !ok || ws == uuid.Nil {
		return store.Wanted{}, refuse(probNotFound, "no such workspace")
	}
	return store.Wanted{ID: ws}, nil
}
