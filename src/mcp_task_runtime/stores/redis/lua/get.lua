return {'ok', all()}
