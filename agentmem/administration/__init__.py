"""Administration: tenants, projects, keys, operators, jobs, and the audit log of it all."""
