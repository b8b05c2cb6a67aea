return {'no'}
