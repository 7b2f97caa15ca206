"""Who may sign an image: keyrings, PKCS#7, the policy that asks for it."""
