"""What a tenant pays for: plans, limits enforced across gateways, lapse.

`definition` says what a plan is, `book` which one a tenant has, `admission` lets work in.
"""
