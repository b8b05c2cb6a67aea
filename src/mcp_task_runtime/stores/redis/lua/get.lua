return {'ok', record()}
